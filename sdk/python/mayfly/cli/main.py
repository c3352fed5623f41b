"""`mayfly`: deploy source code to a live URL that ends by itself.

With `--json` a command prints, and nothing else:

| command | standard output |
|---|---|
| deploy | a line `{"event": FunctionEvent}` for each event, and `{"function": Function}` last |
| get, renew, delete | a `Function` |
| list | `{"functions": [Function]}` |
| logs | a line `TailLogsResponse` for each log line |
| watch | a line `FunctionEvent` for each event |
| trace | a `GetTraceResponse` |
| receipt | a `Receipt`; without a name `{"receipts": [Receipt]}` |
| sweep | a line `{"finding": SweepFinding}` for each, and `{"summary": SweepSummary}` last |
| runtimes | `{"runtimes": [Runtime]}` |
| doctor | `{"ok": bool, "checks": [{"name", "ok", "detail", "fix"}]}` |
| any, when it fails | `{"error": {"status", "reason", "message", "fix", ...}}` |

The messages are those of the contracts, as the HTTP API gives them. `mayfly.cli.exit_codes` has
what the exit statuses mean.
"""

from __future__ import annotations

import sys

import typer

from mayfly.cli.commands import (
    call,
    deploy,
    doctor,
    functions,
    logs,
    receipt,
    runtimes,
    sweep,
    trace,
)
from mayfly.cli.options import GlobalUrl, Json

app = typer.Typer(
    name="mayfly",
    help="Deploy source code to a live URL that ends by itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(ctx: typer.Context, url: GlobalUrl = None, as_json: Json = False) -> None:
    """Deploy source code to a live URL that ends by itself."""
    ctx.obj = {"url": url, "json": as_json}


app.command("deploy")(deploy.deploy)
app.command("list")(functions.list_functions)
app.command("get")(functions.get)
app.command("call")(call.call)
app.command("logs")(logs.logs)
app.command("watch")(logs.watch)
app.command("renew")(functions.renew)
app.command("delete")(functions.delete)
app.command("trace")(trace.trace)
app.command("receipt")(receipt.receipt)
app.command("sweep")(sweep.sweep)
app.command("runtimes")(runtimes.runtimes)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command that the arguments name."""
    try:
        app(prog_name="mayfly")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
