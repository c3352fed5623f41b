"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option("--url", help="Where Mayfly is.", envvar="MAYFLY_URL", show_envvar=True),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
Name = Annotated[str, typer.Argument(help="The function's name.", show_default=False)]
