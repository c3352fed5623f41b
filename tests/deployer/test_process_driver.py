"""The deployer with the driver that runs functions as processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from mayfly.v1 import function_pb2
from mayfly.v1.function_pb2 import State

from services.deployer.drivers.process.driver import ProcessDriver

from .conftest import Gateway, Running, Start, eventually
from .test_main_path import ask
from .tiny_builder import TinyBuilder

ANSWERS = "def handler(event, ctx):\n    print('asked')\n    return {'path': event['path']}\n"
SERVES = """\
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "6")
        self.end_headers()
        self.wfile.write(b"served")
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


@pytest.fixture
def directory(reachable_tmp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that functions' users can enter; with a short path for unix sockets."""
    path = reachable_tmp / tmp_path_factory.mktemp("d").name
    path.mkdir()
    path.chmod(0o711)
    return path


async def start_with_processes(start: Start, directory: Path) -> Running:
    return await start(driver=ProcessDriver(directory))


async def test_handler_and_scripts_from_create_to_nothing(
    start: Start, builder: TinyBuilder, directory: Path
) -> None:
    deployer = await start_with_processes(start, directory)
    gateway = Gateway(deployer)
    handler = await deployer.ready("handler", handler=ANSWERS)
    one = await deployer.ready("one", script=SERVES)
    two = await deployer.ready("two", script=SERVES + "\n# another\n")
    assert b'{"path"' in await ask(gateway.routes["handler"].endpoint)
    for name in ("one", "two"):
        assert b"served" in await ask(gateway.routes[name].endpoint)
    request = function_pb2.TailLogsRequest(name="functions/handler")

    async def logged() -> bool:
        lines = [m.log.text async for m in deployer.functions.TailLogs(request)]
        return "asked" in lines

    await eventually(logged)
    for function in (handler, one, two):
        await deployer.delete(function.name.removeprefix("functions/"))
    outcomes = await deployer.reclaim(handler, one, two)
    assert [outcome.result for outcome in outcomes] == [outcomes[0].RESULT_RECLAIMED] * 3
    left = [r for r in await deployer.driver.list_resources() if r.uid]
    assert left == []
    await gateway.leave()


async def test_failures_at_start_name_their_cause(
    start: Start, builder: TinyBuilder, directory: Path
) -> None:
    deployer = await start_with_processes(start, directory)
    await deployer.create("raises", handler="import nothing_of_this_name\n" + ANSWERS)
    await deployer.create("exits", script="print('good bye')\nraise SystemExit(3)\n")
    await deployer.settle("raises")
    await deployer.settle("exits")
    raises = (await deployer.get("raises")).failure
    assert raises.reason == "HANDLER_IMPORT_FAILED"
    exits = (await deployer.get("exits")).failure
    assert (exits.reason, exits.exit_code) == ("SCRIPT_EXITED", 3)
    assert "good bye" in exits.log_tail


async def test_killed_supervisor_and_killed_deployer(
    start: Start, builder: TinyBuilder, directory: Path
) -> None:
    deployer = await start_with_processes(start, directory)
    gateway = Gateway(deployer)
    await deployer.ready("handler", handler=ANSWERS)
    await deployer.ready("script", script=SERVES)
    endpoints = {name: route.endpoint for name, route in gateway.routes.items()}
    supervisor = deployer.driver._child
    os.kill(supervisor.pid, signal.SIGKILL)

    async def all_answer() -> bool:
        try:
            answers = [await ask(endpoint) for endpoint in endpoints.values()]
        except OSError:
            return False
        return all(b"200" in answer for answer in answers)

    await eventually(all_answer)
    await gateway.leave()
    await deployer.kill()

    again = await start_with_processes(start, directory)
    gateway = Gateway(again)
    await gateway.until(lambda: gateway.complete)
    assert {name: route.endpoint for name, route in gateway.routes.items()} == endpoints
    await eventually(all_answer)
    assert (await again.get("script")).state in (State.STATE_READY, State.STATE_IDLE)
    await gateway.leave()
