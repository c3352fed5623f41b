"""`mayfly list`, `get`, `renew` and `delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mayfly.cli.options import Json, Name, Url
from mayfly.cli.session import session

if TYPE_CHECKING:
    from mayfly.resources import Function

Names = Annotated[list[str], typer.Argument(help="Functions' names.", show_default=False)]


def list_functions(
    ctx: typer.Context,
    filter_: Annotated[
        str, typer.Option("--filter", help='As "state=READY AND labels.team=x".')
    ] = "",
    all_: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended too.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List the functions that live, newest first."""
    with session(ctx, url, as_json) as here:
        found = list(here.client.list(filter=filter_, show_ended=all_))

        def person() -> None:
            from mayfly.cli.render import function_table

            for line in function_table(found, here.console):
                here.line(line)

        here.show({"functions": [function.to_json() for function in found]}, person)


def get(ctx: typer.Context, name: Name, url: Url = None, as_json: Json = False) -> None:
    """Show a function: its state, its URL, its lease."""
    with session(ctx, url, as_json) as here:
        function = here.client.get(name)

        def person() -> None:
            from mayfly.cli.render import function_page

            for line in function_page(function):
                here.line(line)

        here.show(function.to_json(), person)


def renew(
    ctx: typer.Context,
    name: Name,
    ttl: Annotated[
        str | None, typer.Option(help="How long it lives from now. Default: its ttl again.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a function's lease longer, or shorter."""
    with session(ctx, url, as_json) as here:
        function = here.client.renew(name, ttl)

        def person() -> None:
            from mayfly import durations

            here.line(f"{function.id} ends in {durations.clock(function.left())}")

        here.show(function.to_json(), person)


def delete(ctx: typer.Context, names: Names, url: Url = None, as_json: Json = False) -> None:
    """End functions now; they answer no more when this returns."""
    with session(ctx, url, as_json) as here:
        for name in names:
            function: Function = here.client.delete(name)
            if as_json or here.as_json:
                here.record(function.to_json()) if len(names) > 1 else here.data(function.to_json())
            else:
                here.line(f"{function.id} has ended · mayfly receipt {function.id}")
