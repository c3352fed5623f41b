"""services.janitor.deadlines against a plain dictionary."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.janitor import clock
from services.janitor.deadlines import Deadlines

KEYS = st.integers(0, 8)
TIMES = st.integers(0, 50)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), KEYS, TIMES),
        st.tuples(st.just("remove"), KEYS, st.just(0)),
        st.tuples(st.just("take"), st.just(0), TIMES),
    ),
    max_size=60,
)


@given(STEPS)
def test_behaves_as_a_dictionary_of_times(steps: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, int] = {}
    for step, key, at in steps:
        if step == "upsert":
            deadlines.upsert(key, at)
            model[key] = at
        elif step == "remove":
            assert deadlines.remove(key) is (model.pop(key, None) is not None)
        else:
            due = {k for k, t in model.items() if t <= at}
            taken = deadlines.take_due(at)
            assert set(taken) == due
            assert [model[k] for k in taken] == sorted(model[k] for k in due)
            for k in due:
                del model[k]
        assert len(deadlines) == len(model)
        assert deadlines.next() == min(model.values(), default=None)


def test_moving_for_ever_needs_no_more_memory() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for at in range(50_000):
        deadlines.upsert("a", at)
    assert len(deadlines._heap) < 3_000
    assert deadlines.take_due(50_000) == ["a"]


@pytest.mark.parametrize(
    ("times", "wake"),
    [
        ([], None),
        ([100], 100),
        ([100, 200], 100),
        ([100, 104], 105),
        ([300, 103, 100], 105),
    ],
)
def test_wakes_once_for_what_is_close(times: list[int], wake: int | None) -> None:
    deadlines: Deadlines[int] = Deadlines()
    for key, at in enumerate(times):
        deadlines.upsert(key, at)
    assert deadlines.next_wake(5) == wake


async def test_the_alarm_rings_at_the_wall_clocks_time() -> None:
    rung = asyncio.Event()
    alarm = clock.Alarm(rung.set)
    try:
        at = time.time_ns() + 50_000_000
        alarm.set(at + 60_000_000_000)
        alarm.set(at)
        await asyncio.wait_for(rung.wait(), 5)
        assert 0 <= time.time_ns() - at < 100_000_000
        rung.clear()
        alarm.set(at - 1)  # past
        await asyncio.wait_for(rung.wait(), 5)
        rung.clear()
        alarm.set(time.time_ns() + 20_000_000)
        alarm.set(None)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rung.wait(), 0.1)
    finally:
        alarm.close()
