"""`mayfly trace`."""

from __future__ import annotations

import typer

from mayfly.cli.options import Json, Name, Url
from mayfly.cli.session import session


def trace(ctx: typer.Context, name: Name, url: Url = None, as_json: Json = False) -> None:
    """Draw all that happened to a function, from submission to receipt, as a waterfall."""
    with session(ctx, url, as_json) as here:
        found = here.client.trace(name)

        def person() -> None:
            from mayfly.cli.waterfall import waterfall

            for line in waterfall(found, here.console.width):
                here.line(line)

        here.show(found.to_json(), person)
