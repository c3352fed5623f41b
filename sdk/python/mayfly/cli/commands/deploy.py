"""`mayfly deploy`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mayfly.cli.options import Json, Url
from mayfly.cli.session import Session, session

if TYPE_CHECKING:
    from mayfly.resources import Event
    from mayfly.source import Source

PathArgument = Annotated[
    str,
    typer.Argument(
        help="A .py or .go file, a folder, a .tar.gz or .zip of one, or - for standard input.",
        show_default=False,
    ),
]


def deploy(
    ctx: typer.Context,
    path: PathArgument,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Its name. Default: after the file.")
    ] = None,
    ttl: Annotated[
        str | None, typer.Option(help="How long it lives, as 10m or 1h30m. Default: 10m.")
    ] = None,
    idle_timeout: Annotated[
        str | None, typer.Option(help="It also ends after this long without use.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="How long a request may take until it is answered.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="K=V", help="An environment variable; repeatable."),
    ] = None,
    env_file: Annotated[
        list[str] | None, typer.Option(help="A file of K=V lines; --env wins over it.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="A label for filters; repeatable.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="The language, if not as the file says.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The port that a script listens on.")] = None,
    health: Annotated[
        str | None, typer.Option(help="The path of a script that answers 2xx when it is up.")
    ] = None,
    max_instances: Annotated[int | None, typer.Option(help="Instances at most.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Change the function of this name, if it lives.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return at once; requests wait until it is ready.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Deploy a file or a folder, and show how it goes."""
    with session(ctx, url, as_json) as here:
        options: dict[str, Any] = {
            "name": name,
            "ttl": ttl,
            "idle_timeout": idle_timeout,
            "timeout": timeout,
            "env": _environment(env or [], env_file or []),
            "labels": _pairs(label or [], "--label"),
            "runtime": runtime,
            "port": port,
            "health": health,
            "max_instances": max_instances,
        }
        source = _read(path)
        _run(here, source, options, update=update, wait=not no_wait)


def _run(
    here: Session, source: Source, options: dict[str, Any], *, update: bool, wait: bool
) -> None:
    if here.as_json:

        def record(event: Event) -> None:
            here.record({"event": event.to_json()})

        function = here.client.deploy(source, wait=wait, update=update, on_event=record, **options)
        here.record({"function": function.to_json()})
        return
    from mayfly.cli.progress import Progress, live_line

    try:
        with Progress(here.console) as progress:
            function = here.client.deploy(
                source, wait=wait, update=update, on_event=progress.show, **options
            )
    except KeyboardInterrupt:
        here.line("interrupted; the deployment goes on without you (mayfly list)")
        raise
    here.line(live_line(function))


def _read(path: str) -> Source:
    from mayfly.requests import source_of
    from mayfly.source import Source

    return Source.from_text(sys.stdin.read()) if path == "-" else source_of(_as_path(path))


def _as_path(path: str) -> Any:
    from pathlib import Path

    return Path(path)  # a path even when it has a line break in it


def _environment(pairs: list[str], files: list[str]) -> dict[str, str]:
    from mayfly.requests import env_file

    found: dict[str, str] = {}
    for file in files:
        try:
            found |= env_file(file)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(str(error), param_hint="--env-file") from error
    return found | _pairs(pairs, "--env")


def _pairs(pairs: list[str], option: str) -> dict[str, str]:
    from mayfly.requests import env_pair

    try:
        return dict(env_pair(pair, option) for pair in pairs)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
