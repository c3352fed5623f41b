"""`mayfly sweep`."""

from __future__ import annotations

from typing import Annotated

import typer

from mayfly.cli.options import Json, Url
from mayfly.cli.session import Session, session


def sweep(
    ctx: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Look for what belongs to nothing that lives, and remove it."""
    from mayfly.cli.exit_codes import ExitCode
    from mayfly.resources import SweepFinding

    with session(ctx, url, as_json) as here:
        left = 0
        unreachable = False
        for answer in here.client.sweep(dry_run=dry_run):
            if isinstance(answer, SweepFinding):
                left += not answer.removed
                key = "finding"
            else:
                unreachable = bool(answer.unreachable)
                key = "summary"
            if here.as_json:
                here.record({key: answer.to_json()})
            else:
                _show(here, answer, dry_run)
        if unreachable:
            raise typer.Exit(ExitCode.UNAVAILABLE)
        if left:
            raise typer.Exit(ExitCode.RESIDUE)


def _show(here: Session, answer: object, dry_run: bool) -> None:
    from rich.text import Text

    from mayfly.cli.render import resource_line
    from mayfly.resources import SweepFinding, SweepSummary

    if isinstance(answer, SweepFinding):
        mark = "orphan " if dry_run else "removed" if answer.removed else "FAILED "
        style = "yellow" if dry_run else "green" if answer.removed else "red"
        why = f"   {answer.error}" if answer.error else ""
        here.line(Text.assemble((f"{mark}  ", style), resource_line(answer.resource), why))
    elif isinstance(answer, SweepSummary):
        done = "nothing was removed (dry run)" if dry_run else f"{answer.removed} removed"
        outcome = f"{answer.found} orphans, {done}" if answer.found else "no orphans"
        here.line(Text(outcome, "bold"))
        for what in answer.looked_at:
            here.line(Text.assemble(("  looked at  ", "dim"), what))
        for who in answer.unreachable:
            here.line(Text.assemble(("  not asked  ", "red"), who))
