"""`mayfly runtimes`."""

from __future__ import annotations

import typer

from mayfly.cli.options import Json, Url
from mayfly.cli.session import session


def runtimes(ctx: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """Show the languages, and whether each can be used here."""
    with session(ctx, url, as_json) as here:
        found = here.client.runtimes()

        def person() -> None:
            from mayfly.cli.render import runtime_lines

            for line in runtime_lines(found):
                here.line(line)

        here.show({"runtimes": [runtime.to_json() for runtime in found]}, person)
