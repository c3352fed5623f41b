"""What every command shares: where Mayfly is, how to print, and how failures end the program."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer

from mayfly.errors import FunctionFailed, InvalidRequest, MayflyError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mayfly.client import Client

DEFAULT_URL = "http://127.0.0.1:8080"


class Session:
    """One run of a command."""

    def __init__(self, url: str, *, as_json: bool) -> None:
        self.url = url
        self.as_json = as_json

    @cached_property
    def client(self) -> Client:
        """The connection to Mayfly. Raises `InvalidRequest` when the URL is none."""
        # gRPC's own log lines on standard error would stand beside the error that is explained.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from mayfly.client import Client

        try:
            return Client(self.url)
        except ValueError as error:
            raise InvalidRequest(
                str(error), reason="INVALID_FIELD", fix="correct --url or MAYFLY_URL", field="url"
            ) from error

    @cached_property
    def console(self) -> Console:
        """Where a person reads; colours on a terminal alone, none with NO_COLOR."""
        from rich.console import Console

        return Console(highlight=False, emoji=False, markup=False)

    def close(self) -> None:
        """End the connection, with whatever call an interrupt has left open, if there is one."""
        if "client" in self.__dict__:
            self.client.close()

    def line(self, *parts: RenderableType) -> None:
        """Print one line for a person; it is never cut or folded."""
        self.console.print(*parts, soft_wrap=True)

    def data(self, document: Any) -> None:
        """Print a whole JSON document."""
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    def record(self, document: Mapping[str, Any]) -> None:
        """Print one JSON document a line, at once."""
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def show(self, document: Mapping[str, Any], person: Callable[[], None]) -> None:
        """Print `document` for a program, or let `person` print for a person."""
        if self.as_json:
            self.data(document)
        else:
            person()


@contextmanager
def session(ctx: typer.Context, url: str | None, as_json: bool) -> Generator[Session]:
    """Lend a session; turn what goes wrong into a message and an exit status."""
    from mayfly.cli.exit_codes import ExitCode, exit_code

    shared: dict[str, Any] = ctx.obj or {}
    lent = Session(
        url or shared.get("url") or DEFAULT_URL, as_json=as_json or bool(shared.get("json"))
    )
    try:
        yield lent
    except MayflyError as error:
        tell(lent, error)
        raise typer.Exit(exit_code(error)) from error
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupt
    except BrokenPipeError as gone:
        # Python would complain when it flushes at exit; there is nobody to complain to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.PIPE_CLOSED) from gone
    finally:
        lent.close()


def tell(where: Session, error: MayflyError) -> None:
    """Say what went wrong: JSON on standard output, or words on standard error."""
    if where.as_json:
        where.record(error.to_json())
        return
    from rich.console import Console

    from mayfly.cli.failure import failure_lines

    console = Console(stderr=True, highlight=False, emoji=False, markup=False)
    if isinstance(error, FunctionFailed):
        for line in failure_lines(error):
            console.print(line, soft_wrap=True)
        return
    from rich.text import Text

    console.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
    if error.fix:
        console.print(Text.assemble(("fix: ", "bold"), error.fix), soft_wrap=True)
