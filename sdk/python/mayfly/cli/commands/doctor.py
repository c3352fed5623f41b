"""`mayfly doctor`."""

from __future__ import annotations

import typer

from mayfly.cli.options import Json, Url
from mayfly.cli.session import Session, session


def doctor(ctx: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """Check the connection, every service and the languages, and say how to put things right."""
    from mayfly.cli.exit_codes import ExitCode

    with session(ctx, url, as_json) as here:
        from mayfly.cli.checks import Check, checks

        found: list[Check] = []
        for check in checks(here.client):
            found.append(check)
            if not here.as_json:
                _show(here, check)
        healthy = all(check.ok for check in found)
        if here.as_json:
            here.data({"ok": healthy, "checks": [check.to_json() for check in found]})
        if not found[0].ok:
            raise typer.Exit(ExitCode.UNAVAILABLE)
        if not healthy:
            raise typer.Exit(ExitCode.OTHER)


def _show(here: Session, check: object) -> None:
    from rich.text import Text

    from mayfly.cli.checks import Check

    if isinstance(check, Check):
        mark = ("✓ ", "green") if check.ok else ("✗ ", "bold red")
        here.line(Text.assemble(mark, (f"{check.name:<16} ", "bold"), check.detail))
        if check.fix:
            here.line(Text.assemble(("  fix: ", "bold"), check.fix))
