"""`mayfly logs` and `mayfly watch`."""

from __future__ import annotations

from typing import Annotated

import typer

from mayfly.cli.options import Json, Name, Url
from mayfly.cli.session import session


def logs(
    ctx: typer.Context,
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until it has ended.")
    ] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=1, help="Lines to begin with.")] = 100,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Begin lines with when they were written.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show what a function, and its build, have written."""
    with session(ctx, url, as_json) as here:
        for line in here.client.logs(name, tail=tail, follow=follow):
            if here.as_json:
                here.record(line.to_json())
                continue
            from mayfly.cli.events import log_text

            here.line(log_text(line, timestamps=timestamps))


def watch(
    ctx: typer.Context,
    name: Name,
    after: Annotated[int, typer.Option(help="The last event that was seen.")] = 0,
    until_settled: Annotated[
        bool, typer.Option("--until-settled", help="Stop once it is ready, failed or ended.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show everything that happens to a function, live until it has ended."""
    with session(ctx, url, as_json) as here:
        for event in here.client.watch(name, after=after, until_settled=until_settled):
            if here.as_json:
                here.record(event.to_json())
                continue
            from mayfly.cli.events import event_line

            here.line(event_line(event))
