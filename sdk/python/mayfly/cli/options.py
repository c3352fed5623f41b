"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

GlobalUrl = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="Where Mayfly is. Default: http://127.0.0.1:8080.",
        envvar="MAYFLY_URL",
        show_envvar=True,
    ),
]
# The environment is read by the one above: else it would win over `mayfly --url X list`.
Url = Annotated[str | None, typer.Option("--url", help="Where Mayfly is. Default: $MAYFLY_URL.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
Name = Annotated[str, typer.Argument(help="The function's name.", show_default=False)]
