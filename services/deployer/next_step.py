"""What to do next for a function, decided by its row and what is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from services.deployer.rows import FunctionRow


@dataclass(frozen=True)
class World:
    """What was seen beside the row."""

    reserved: bool
    """The driver has the function's socket since this process started or the driver was lost, or
    it makes none."""
    artefact_present: bool
    """The files of the row's build are there."""


@dataclass(frozen=True)
class Prepare:
    """Make the socket and the build; what both need is there, so they go side by side."""

    reserve: bool
    build: bool


@dataclass(frozen=True)
class Deploy:
    """Start the first instance of the newest generation."""


@dataclass(frozen=True)
class Hold:
    """Tell the builder that the lease is longer now."""


@dataclass(frozen=True)
class Nothing:
    """All is as it has to be."""


Step: TypeAlias = Prepare | Deploy | Hold | Nothing


def next_step(row: FunctionRow, world: World) -> Step:
    """Return the next step; each is safe to repeat, and leads to another decision."""
    if row.ended:
        return Nothing()
    if row.settled:
        return Hold() if row.hold_due else Nothing()
    build = not row.artefact or not world.artefact_present
    if build or not world.reserved:
        return Prepare(reserve=not world.reserved, build=build)
    return Deploy()
