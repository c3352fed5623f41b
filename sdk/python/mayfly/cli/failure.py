"""A failure as a person reads it: what, where, and what to change."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from mayfly.errors import FunctionFailed

# Lines of the log that are shown; `mayfly logs` has the rest.
_LOG_LINES = 12


def failure_lines(error: FunctionFailed) -> Iterator[Text]:
    """Yield the lines of a failed function, in the order in which they are read."""
    failure = error.failure
    yield Text.assemble(
        "  ",
        (f"{failure.stage} failed: {failure.reason}", "bold red"),
        _place(failure.line, failure.column),
        f": {failure.message}",
    )
    if failure.source_line:
        number = f"{failure.line:>7} | "
        yield Text.assemble((number, "dim"), failure.source_line)
        if failure.column > 0:
            yield Text.assemble(
                (" " * 7 + " | ", "dim"), caret(failure.source_line, failure.column)
            )
    for line in failure.log_tail[-_LOG_LINES:]:
        yield Text.assemble(("        | ", "dim"), (line, "dim"))
    if failure.exit_code is not None:
        yield Text(f"  {_ended(failure.exit_code)}")
    if failure.fix:
        yield Text.assemble(("  fix: ", "bold"), failure.fix)


def caret(source_line: str, column: int) -> Text:
    """Return a caret below `column` (from 1), however the line is indented."""
    before = source_line[: column - 1]
    return Text(
        "".join(c if c == "\t" else " " for c in before).ljust(column - 1) + "^", "bold red"
    )


def _place(line: int, column: int) -> str:
    if not line:
        return ""
    return f" at line {line}, column {column}" if column else f" at line {line}"


def _ended(exit_code: int) -> str:
    if exit_code < 0:
        return f"the process was ended by signal {-exit_code}"
    return f"the process ended with exit code {exit_code}"
