"""How many instances a function gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.deployer.scaling import DOWN_AFTER, Bounds, Load, desired_instances

BOUNDS = Bounds(concurrency=2, min_instances=0, max_instances=4, idle_stop=60.0)

bounds_of_any_function = st.builds(
    lambda concurrency, least, more, idle: Bounds(concurrency, least, max(1, least + more), idle),
    st.integers(1, 100),
    st.integers(0, 8),
    st.integers(0, 60),
    st.floats(0.1, 3600),
)
loads = st.builds(Load, st.integers(0, 10_000), st.floats(0, 7200), st.floats(0, 7200))


@pytest.mark.parametrize(
    ("current", "load", "expected"),
    [
        (1, Load(0, 0), 1),
        (1, Load(2, 0), 1),
        (1, Load(3, 0), 2),
        (1, Load(100, 0), 4),
        (3, Load(1, 0, DOWN_AFTER - 1), 3),
        (3, Load(1, 0, DOWN_AFTER), 1),
        (3, Load(0, 10, DOWN_AFTER), 1),
        (1, Load(0, 59.9, 59.9), 1),
        (1, Load(0, 60), 0),
        (3, Load(0, 60), 0),
        (0, Load(0, 1000), 0),
        (0, Load(1, 0), 1),
    ],
)
def test_desired_instances(current: int, load: Load, expected: int) -> None:
    assert desired_instances(current, load, BOUNDS) == expected


def test_a_function_with_a_minimum_never_sleeps() -> None:
    bounds = Bounds(concurrency=2, min_instances=2, max_instances=4, idle_stop=60.0)
    assert desired_instances(2, Load(0, 1e6, 1e6), bounds) == 2
    assert desired_instances(4, Load(0, 1e6, 1e6), bounds) == 2
    assert desired_instances(0, Load(0, 0), bounds) == 2


@given(st.integers(0, 64), loads, bounds_of_any_function)
def test_the_bounds_hold(current: int, load: Load, bounds: Bounds) -> None:
    wanted = desired_instances(current, load, bounds)
    assert bounds.min_instances <= wanted <= max(bounds.max_instances, current)


@given(st.integers(0, 64), loads, bounds_of_any_function)
def test_what_is_used_is_never_sent_to_sleep(current: int, load: Load, bounds: Bounds) -> None:
    if load.in_flight or (current and load.unused < bounds.idle_stop):
        assert desired_instances(current, load, bounds) >= 1


@given(st.integers(0, 64), loads, bounds_of_any_function)
def test_it_settles(current: int, load: Load, bounds: Bounds) -> None:
    """What was decided is decided again, so that nothing swings."""
    wanted = desired_instances(current, load, bounds)
    assert desired_instances(wanted, load, bounds) == wanted


@given(st.integers(0, 64), st.integers(0, 100), st.integers(0, 100), bounds_of_any_function)
def test_more_load_never_means_fewer(current: int, few: int, more: int, bounds: Bounds) -> None:
    low, high = sorted((few, more))
    assert desired_instances(current, Load(low, 0), bounds) <= desired_instances(
        current, Load(high, 0), bounds
    )
