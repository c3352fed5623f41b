"""`mayfly call`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from mayfly.cli.options import Json, Name, Url
from mayfly.cli.session import session


def call(
    ctx: typer.Context,
    name: Name,
    path: Annotated[str, typer.Argument(help="Path and query, as /items?x=1.")] = "/",
    method: Annotated[
        str | None, typer.Option("--method", "-X", help="Default: GET, or POST with --data.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The body; - reads standard input.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME: VALUE", help="Repeatable.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send a function a request, and print its answer as it comes."""
    with session(ctx, url, as_json) as here:
        import httpx

        from mayfly.cli.exit_codes import ExitCode
        from mayfly.errors import Unavailable

        target = f"{here.client.get(name).url.rstrip('/')}/{path.lstrip('/')}"
        body = sys.stdin.buffer.read() if data == "-" else data
        verb = method or ("GET" if body is None else "POST")
        try:
            with httpx.stream(
                verb, target, content=body, headers=_headers(header or []), timeout=None
            ) as answer:
                if here.as_json:
                    here.data(_document(answer))
                else:
                    last = b""
                    for last in answer.iter_bytes():
                        sys.stdout.buffer.write(last)
                        sys.stdout.buffer.flush()
                    if sys.stdout.isatty() and not last.endswith(b"\n"):
                        sys.stdout.write("\n")  # the prompt begins on a line of its own
        except httpx.TransportError as error:
            raise Unavailable(
                f"{target}: {error}", fix="see whether the URL is reachable from here"
            ) from error
        if not answer.is_success:
            sys.stderr.write(f"HTTP {answer.status_code} {answer.reason_phrase}\n")
            raise typer.Exit(ExitCode.OTHER)


def _document(answer: Any) -> dict[str, Any]:
    answer.read()
    return {
        "status": answer.status_code,
        "headers": dict(answer.headers),
        "body": answer.text,
    }


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if not colon:
            raise typer.BadParameter(f"{line!r} is not NAME: VALUE", param_hint="--header")
        headers[key.strip()] = value.strip()
    return headers
