"""Bytes become lines, whatever they are and however they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.deployer.drivers.process import logs


def collect(parts: list[bytes]) -> list[str]:
    splitter = logs.LineSplitter()
    return [line for part in parts for line in splitter.feed(part)] + splitter.finish()


def test_lines() -> None:
    assert collect([b"one\ntw", b"o\r\n\nend"]) == ["one", "two", "", "end"]
    assert collect([b"\xff\x00\n"]) == ["\N{REPLACEMENT CHARACTER}" * 2]


@given(st.lists(st.binary(max_size=40)))
def test_cuts_do_not_matter(parts: list[bytes]) -> None:
    assert collect(parts) == collect([b"".join(parts)])


def test_long_lines_come_in_pieces() -> None:
    lines = collect([b"x" * 100_000])
    assert sum(len(line) for line in lines) == 100_000
    assert max(len(line) for line in lines) == logs.MAX_LINE_BYTES
    assert logs.LineSplitter().feed(b"y" * 20_000) == ["y" * 8192, "y" * 8192]


def test_budget_is_renewed_by_the_second() -> None:
    budget = logs.Budget(10.0)
    budget.lines, budget.dropped = 0, 7
    assert budget.renew(10.5) == 0
    assert budget.renew(11.0) == 7
    assert (budget.lines, budget.dropped) == (logs.LINES_PER_SECOND, 0)
