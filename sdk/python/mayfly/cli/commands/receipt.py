"""`mayfly receipt`."""

from __future__ import annotations

from typing import Annotated

import typer

from mayfly.cli.options import Json, Url
from mayfly.cli.session import session


def receipt(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="A function that has ended. Default: list all.", show_default=False),
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show what was removed when a lease ended, and what was looked at to verify it."""
    from mayfly.cli.exit_codes import ExitCode

    with session(ctx, url, as_json) as here:
        if name is None:
            found = list(here.client.receipts())

            def people() -> None:
                from mayfly.cli.render import receipt_table

                for line in receipt_table(found, here.console):
                    here.line(line)

            here.show({"receipts": [one.to_json() for one in found]}, people)
            return
        one = here.client.receipt(name)

        def person() -> None:
            from mayfly.cli.render import receipt_page

            for line in receipt_page(one):
                here.line(line)

        here.show(one.to_json(), person)
        if not one.verified:
            raise typer.Exit(ExitCode.RESIDUE)
