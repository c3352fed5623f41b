"""Samples, their percentiles, and the table that shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile. Raises `ValueError` without samples."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank = max(1, math.ceil(percent / 100 * len(ordered)))
    return ordered[rank - 1]


@dataclass
class Figure:
    """One row: what was measured, and the peer whose figure it is divided by.

    `samples` are in `unit`. `bound` is the ratio p50/peer's p50 that is aimed at; None: no aim.
    """

    name: str
    unit: str = "ms"
    samples: list[float] = field(default_factory=list[float])
    peer: Figure | None = None
    bound: float | None = None
    missing: str = ""

    def add(self, sample: float) -> None:
        """Keep one sample."""
        self.samples.append(sample)

    @property
    def ratio(self) -> float | None:
        """p50 over the peer's p50; None when one of them was not measured."""
        if self.peer is None or not self.samples or not self.peer.samples:
            return None
        own, other = percentile(self.samples, 50), percentile(self.peer.samples, 50)
        return own / other if other else None


HEAD = ("what", "n", "p50", "p99", "unit", "against", "ratio", "aim")


def cells(figure: Figure) -> tuple[str, ...]:
    """Return a figure's row of the table."""
    against = figure.peer.name if figure.peer else ""
    if not figure.samples:
        missing = figure.missing or "no samples"
        return (figure.name, "0", "-", "-", figure.unit, against, f"missing: {missing}", "")
    ratio, aim = figure.ratio, ""
    if figure.bound is not None:
        aim = f"≤ {_number(figure.bound)}"
        if ratio is not None:
            aim += " met" if ratio <= figure.bound else " MISSED"
    return (
        figure.name,
        str(len(figure.samples)),
        _number(percentile(figure.samples, 50)),
        _number(percentile(figure.samples, 99)),
        figure.unit,
        against,
        _number(ratio) if ratio is not None else "",
        aim,
    )


def text_table(figures: Sequence[Figure]) -> str:
    """Return the table for a terminal."""
    rows = [HEAD, *(cells(f) for f in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def markdown_table(figures: Sequence[Figure]) -> str:
    """Return the table for a document."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    lines += [f"| {' | '.join(cells(f))} |" for f in figures]
    return "\n".join(lines)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"
