"""`mayfly` as a process against a platform over real gRPC."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mayfly.v1 import janitor_pb2, reclaimer_pb2

from tests.sdk.conftest import Mayfly, Running
from tests.sdk.platform import FakePlatform, at, server

HANDLER = "def handler(event, ctx):\n    return 1\n"
BROKEN = "# broken\ndef handler(event, ctx):\n    return (1 + 2\n"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """A file with a handler."""
    path = tmp_path / "hello.py"
    path.write_text(HANDLER)
    return path


async def test_deploy_shows_stages_and_the_url(
    mayfly: Mayfly, running: Running, hello: Path
) -> None:
    done = await mayfly("deploy", str(hello), "--ttl", "10m")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "  checked     1 ms",
        "    | Resolved 3 packages in 12ms",
        "  built       3 ms   environment 8c1f2a",
        "  deployed    4 ms   process, 1.3 MiB",
        "  routed      6 ms",
        "  http://localhost:8080/f/hello      ends in 10:00 · mayfly renew hello --ttl 1h",
    ]
    request = running.platform.requests[0]
    assert request.function_id == "hello"
    assert request.function.handler == HANDLER
    assert request.function.ttl.ToSeconds() == 600
    assert len(request.request_id) >= 16


async def test_deploy_passes_on_what_it_is_told(
    mayfly: Mayfly, running: Running, hello: Path, tmp_path: Path
) -> None:
    (tmp_path / "env").write_text("# mine\nA=1\nexport B='two words'\n")
    done = await mayfly(
        *("deploy", str(hello), "--name", "other", "--idle-timeout", "90s", "--env", "A=9"),
        *("--env", "C=a=b", "--env-file", str(tmp_path / "env"), "--label", "team=x"),
        *("--port", "9000", "--health", "/up", "--timeout", "5s", "--max-instances", "2"),
        "--no-wait",
    )
    assert done.code == 0
    function = running.platform.requests[0].function
    assert running.platform.requests[0].function_id == "other"
    assert dict(function.env) == {"A": "9", "B": "two words", "C": "a=b"}
    assert dict(function.labels) == {"team": "x"}
    assert (function.idle_timeout.ToSeconds(), function.timeout.ToSeconds()) == (90, 5)
    assert (function.port, function.health, function.max_instances) == (9000, "/up", 2)
    assert not function.HasField("ttl")
    assert len(running.platform.requests) == 1  # it did not watch


async def test_deploy_from_standard_input(mayfly: Mayfly, running: Running) -> None:
    done = await mayfly("deploy", "-", "--json", stdin=HANDLER)
    assert done.code == 0
    assert running.platform.requests[0].function.handler == HANDLER
    assert done.records[-1]["function"]["name"] == "functions/made-up"


async def test_deploy_as_data(mayfly: Mayfly, hello: Path) -> None:
    done = await mayfly("deploy", str(hello), "--json")
    assert (done.code, done.err) == (0, "")
    *events, last = done.records
    assert [record["event"]["sequence"] for record in events] == [str(n) for n in range(1, 9)]
    assert events[1]["event"]["stage"]["stage"] == "STAGE_CHECK"
    assert last["function"]["state"] == "STATE_READY"
    assert last["function"]["url"] == "http://localhost:8080/f/hello"


async def test_a_build_that_fails(mayfly: Mayfly, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    done = await mayfly("deploy", str(path))
    assert done.code == 5
    assert done.out.splitlines() == ["  checked     1 ms"]
    assert done.err.splitlines() == [
        "  build failed: SOURCE_SYNTAX at line 3, column 12: '(' was never closed",
        "      3 |     return (1 + 2",
        "        |            ^",
        "  fix: close the parenthesis and deploy again",
    ]
    as_data = await mayfly("--json", "deploy", str(path), "--name", "again")
    assert (as_data.code, as_data.err) == (5, "")
    error = as_data.records[-1]["error"]
    assert (error["reason"], error["stage"], error["function"]) == (
        "SOURCE_SYNTAX",
        "build",
        "again",
    )
    assert error["failure"]["line"] == 3


async def test_update_changes_the_function_that_lives(
    mayfly: Mayfly, running: Running, hello: Path
) -> None:
    await mayfly("deploy", str(hello))
    again = await mayfly("deploy", str(hello))
    assert again.code == 4
    assert "fix: choose another name, or change it with --update" in again.err
    updated = await mayfly("deploy", str(hello), "--update", "--env", "A=1", "--ttl", "5m")
    assert updated.code == 0, updated.err
    update = next(r for r in running.platform.requests if hasattr(r, "update_mask"))
    assert sorted(update.update_mask.paths) == ["env", "handler"]
    assert any(hasattr(r, "ttl") and r.ttl.seconds == 300 for r in running.platform.requests)
    fresh = await mayfly("deploy", str(hello), "--name", "fresh", "--update")
    assert fresh.code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["deploy", "nowhere.py"], 2, "nowhere.py: No such file or directory"),
        (["deploy", "-", "--ttl", "soon"], 2, "'soon' is no duration"),
        (["deploy", "-", "--ttl", "48h"], 2, "fix: give at most 24h"),
        (["deploy", "-", "--env", "novalue"], 2, "'novalue' is not KEY=VALUE"),
        (["deploy"], 2, "Missing argument"),
        (["fly"], 2, "No such command 'fly'"),
        (["get", "nope"], 3, "fix: see mayfly list"),
        (["receipt", "nope"], 3, "no receipt"),
        (["--url", "ftp://x", "list"], 2, "is no address"),
        (["list", "--url", "http://127.0.0.1:1"], 7, "cannot reach Mayfly at http://127.0.0.1:1"),
    ],
)
async def test_failures_are_told_apart(
    mayfly: Mayfly, arguments: list[str], code: int, words: str
) -> None:
    done = await mayfly(*arguments, stdin=HANDLER, COLUMNS="200")
    assert done.code == code, done.err
    assert words in done.err
    assert done.out == ""


async def test_errors_as_data(mayfly: Mayfly) -> None:
    done = await mayfly("get", "nope", "--json")
    assert (done.code, done.err) == (3, "")
    assert done.document["error"] == {
        "status": "NOT_FOUND",
        "reason": "NOT_FOUND",
        "message": "functions/nope does not exist",
        "fix": "see mayfly list",
    }
    invalid = await mayfly("deploy", "-", "--ttl", "48h", "--json", stdin=HANDLER)
    assert invalid.document["error"]["field"] == "function.ttl"


async def test_list_get_renew_delete(mayfly: Mayfly, hello: Path) -> None:
    empty = await mayfly("list")
    assert empty.out == "no functions · mayfly deploy FILE\n"
    for name in ("a", "b", "c"):
        await mayfly("deploy", str(hello), "--name", name, "--no-wait")
    listed = await mayfly("list")
    assert listed.out.splitlines()[0].split() == ["NAME", "STATE", "ENDS", "RUNTIME", "URL"]
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ["a", "b", "c"]
    data = (await mayfly("list", "--json")).document
    assert [f["name"] for f in data["functions"]] == [f"functions/{n}" for n in "abc"]

    page = await mayfly("get", "a")
    assert page.out.splitlines()[0] == "a  READY"
    assert "  url        http://localhost:8080/f/a" in page.out
    assert (await mayfly("get", "a", "--json")).document["uid"] == "a" * 16

    renewed = await mayfly("renew", "a", "--ttl", "1h")
    assert renewed.out == "a ends in 1:00:00\n"
    deleted = await mayfly("delete", "a", "b")
    assert deleted.out.splitlines()[0] == "a has ended · mayfly receipt a"
    ended = await mayfly("renew", "a")
    assert ended.code == 9
    assert "fix: deploy again" in ended.err
    one = await mayfly("delete", "c", "--json")
    assert one.document["endReason"] == "END_REASON_DELETED"


async def test_logs_and_watch(mayfly: Mayfly, hello: Path, running: Running) -> None:
    await mayfly("deploy", str(hello))
    logs = await mayfly("logs", "hello", "-n", "5")
    assert logs.out.splitlines() == ["Resolved 3 packages in 12ms", "hello from the function"]
    assert running.platform.requests[-1].tail == 5
    records = (await mayfly("logs", "hello", "--json")).records
    assert records[1]["log"] == {"origin": "ORIGIN_STDOUT", "text": "hello from the function"}
    running.platform.break_streams = 1
    watched = await mayfly("watch", "hello")
    assert watched.code == 0
    lines = [line.split(maxsplit=1)[1] for line in watched.out.splitlines()]
    assert len(lines) == 8  # broken once on the way, nothing lost, nothing twice
    assert lines[-1].split() == ["state", "READY"]
    data = (await mayfly("watch", "hello", "--json", "--after", "7")).records
    assert [event["sequence"] for event in data] == ["8"]


async def test_trace_fits_eighty_columns(mayfly: Mayfly, hello: Path) -> None:
    await mayfly("deploy", str(hello))
    done = await mayfly("trace", "hello", COLUMNS="80")
    lines = done.out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert [line.split()[0] for line in lines[1:5]] == ["function", "build", "deploy", "expire"]
    assert "nothing happens for 9m60s" in lines[-1] or "nothing happens for 10m" in lines[-1]
    assert (await mayfly("trace", "hello", "--json")).document["spans"][1]["service"] == "builder"


async def test_receipt(mayfly: Mayfly, running: Running) -> None:
    receipt = janitor_pb2.Receipt(
        name="receipts/hello",
        resource="functions/hello",
        uid="u",
        end_reason="ttl",
        removed=[reclaimer_pb2.Resource(type="process", id="4711")],
        kept=[reclaimer_pb2.Resource(type="environment", id="77ab", detail="4 others use it")],
        looked_at=["deployer: processes (212)", "builder: directories (3)"],
        verified=True,
        expire_time=at(-60),
        reclaim_time=at(-59.988),
    )
    receipt.lag.FromMilliseconds(12)
    running.platform.receipts["receipts/hello"] = receipt
    done = await mayfly("receipt", "hello")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "hello  removed 12ms after its lease ended (ttl)  verified"
    assert lines[2:] == [
        "  removed    process     4711",
        "  kept       environment 77ab   4 others use it",
        "  looked at  deployer: processes (212)",
        "             builder: directories (3)",
        "  found      nothing of it",
    ]
    assert (await mayfly("receipt", "functions/hello", "--json")).document["verified"] is True
    listed = (await mayfly("receipt", "--json")).document["receipts"]
    assert [one["name"] for one in listed] == ["receipts/hello"]

    receipt.verified = False
    receipt.residue.add(type="mount", id="/x")
    dirty = await mayfly("receipt", "hello")
    assert dirty.code == 8
    assert "  residue    mount       /x" in dirty.out.splitlines()


async def test_sweep(mayfly: Mayfly, running: Running) -> None:
    clean = await mayfly("sweep", "--dry-run")
    assert clean.code == 0
    assert clean.out.splitlines() == ["no orphans", "  looked at  deployer: processes (212)"]
    orphan = reclaimer_pb2.Resource(type="directory", id="/x", orphan=True)
    running.platform.findings = [janitor_pb2.SweepFinding(resource=orphan)]
    dry = await mayfly("sweep", "--dry-run")
    assert dry.code == 8
    assert dry.out.splitlines()[:2] == [
        "orphan   directory   /x",
        "1 orphans, nothing was removed (dry run)",
    ]
    data = (await mayfly("sweep", "--json")).records
    assert data[0]["finding"]["removed"] is True
    assert data[1]["summary"]["found"] == 1
    running.platform.findings[0].error = "busy"
    assert (await mayfly("sweep")).code == 8


async def test_runtimes(mayfly: Mayfly) -> None:
    done = await mayfly("runtimes")
    assert "✗ go" in done.out
    assert "✓ python 3.11.2" in done.out
    assert "no `go` on PATH; install Go 1.22" in done.out
    names = [r["name"] for r in (await mayfly("runtimes", "--json")).document["runtimes"]]
    assert names == ["go", "python"]


async def test_doctor_names_what_is_wrong(mayfly: Mayfly) -> None:
    # The port of this platform speaks gRPC alone, so the version cannot be read.
    done = await mayfly("doctor", "--json")
    checks = {check["name"]: check for check in done.document["checks"]}
    assert checks["connection"]["ok"]
    assert checks["JanitorService"]["detail"] == "serving"
    assert checks["runtime go"]["ok"]  # not installed is no fault
    assert checks["leases"]["detail"] == "3 known, 0 overdue"
    assert not checks["version"]["ok"]
    assert done.code == 1
    away = await mayfly("doctor", "--url", "http://127.0.0.1:1")
    assert away.code == 7
    assert "fix: start it with `make run`" in away.out


async def test_a_service_that_does_not_serve_is_named(
    mayfly: Mayfly, running: Running, tmp_path: Path
) -> None:
    serving = server(FakePlatform(), f"unix:{tmp_path}/s")
    address = await serving.start()
    await serving.health.set("mayfly.v1.FunctionService", True)
    done = await mayfly("doctor", "--url", address)
    await serving.stop(0)
    assert done.code == 1
    assert "✗ BuildService" in done.out
    assert "✓ FunctionService" in done.out


def _terminal(arguments: list[str], url: str, **environment: str) -> tuple[int, str]:
    """Run `mayfly` on a terminal of 80 columns; return its exit status and what it showed."""
    master, slave = pty.openpty()
    subprocess.run(["stty", "rows", "24", "cols", "80"], stdin=slave, check=True)
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", "mayfly.cli.main", *arguments],
        env={**inherited, "MAYFLY_URL": url, "TERM": "xterm", **environment},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the terminal has no other end any more
            break
        if not chunk:
            break
        shown += chunk
    os.close(master)
    return process.wait(30), shown.decode()


async def test_on_a_terminal(running: Running, hello: Path) -> None:
    code, shown = await asyncio.to_thread(_terminal, ["deploy", str(hello)], running.url)
    assert code == 0
    assert "\x1b[" in shown
    plain = ESCAPE.sub("", shown)
    assert "  built       3 ms   environment 8c1f2a" in plain
    assert "http://localhost:8080/f/hello      ends in 10:00" in plain
    code, shown = await asyncio.to_thread(
        _terminal, ["deploy", str(hello), "--name", "b"], running.url, NO_COLOR="1"
    )
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)  # no colours
    code, shown = await asyncio.to_thread(_terminal, ["list"], running.url)
    assert all(len(line) <= 80 for line in ESCAPE.sub("", shown).splitlines())


async def test_interrupt(running: Running, hello: Path) -> None:
    running.platform.settles.clear()
    # A terminal's programs take SIGINT; a shell's background jobs inherit that it is ignored.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from mayfly.cli.main import main; main()"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, "deploy", str(hello)),
        env={**os.environ, "MAYFLY_URL": running.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    while b"routed" not in await asyncio.wait_for(process.stdout.readline(), 30):
        pass
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    running.platform.settles.set()
    assert process.returncode == 130
    assert b"the deployment goes on" in out
    assert err == b""


def test_the_program_imports_little_before_it_knows_what_to_do() -> None:
    program = "import sys, mayfly.cli.main; print('grpc' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
