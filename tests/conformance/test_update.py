"""New source, same URL: traffic moves when the new one is ready, and nobody is failed meanwhile."""

from __future__ import annotations

import asyncio

from tests.conformance.door import Door, Json, example, problem_of, time_of, until


def version(number: int, before: str = "") -> str:
    """Return a handler that answers with its version."""
    return f"{before}def handler(event, ctx):\n    return {{'version': {number}}}\n"


def server(number: int) -> str:
    """Return a script on port 8000 that answers with its version."""
    return (
        "# /// script\n# dependencies = []\n# ///\n"
        "import http.server\n"
        "class Server(http.server.BaseHTTPRequestHandler):\n"
        "    protocol_version = 'HTTP/1.1'\n"
        "    def do_GET(self):\n"
        f"        body = b'{{\"version\": {number}}}'\n"
        "        self.send_response(200)\n"
        "        self.send_header('content-length', str(len(body)))\n"
        "        self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "http.server.ThreadingHTTPServer(('0.0.0.0', 8000), Server).serve_forever()\n"
    )


class Load:
    """Calls a function every 20 ms from the side, and keeps what it answered."""

    def __init__(self, mayfly: Door, function: Json) -> None:
        self.versions: list[int] = []
        self.failures: list[str] = []
        self._mayfly = mayfly
        self._function = function
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            answer = await self._mayfly.call(self._function)
            if answer.status_code == 200:
                self.versions.append(answer.json()["version"])
            else:
                self.failures.append(f"{answer.status_code} {answer.text}")
            await asyncio.sleep(0.02)

    async def saw(self, number: int, seconds: float) -> None:
        """Wait until a version has answered."""

        async def probe() -> bool:
            if self._task.done():
                self._task.result()
            return number in self.versions

        await until(probe, seconds, what=f"version {number}")

    async def stop(self) -> None:
        """Stop calling."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def check_move(mayfly: Door, kind: str, old: str, new: str) -> None:
    """Update `kind` from version 1 to 2 under load and see that nothing fails."""
    function = await mayfly.ready(**{kind: old})
    load = Load(mayfly, function)
    try:
        await load.saw(1, 10)
        response = await mayfly.update(function, **{kind: new})
        assert response.status_code == 200, response.text
        await load.saw(2, 30)
        settled = len(load.versions)
        await until(
            lambda: asyncio.sleep(0, len(load.versions) > settled + 30), 20, what="30 more answers"
        )
    finally:
        await load.stop()
    assert load.failures == []
    assert set(load.versions[settled + 5 :]) == {2}
    updated = await mayfly.get(function)
    assert updated["url"] == function["url"]
    assert updated["revision"] == 2
    assert updated["uid"] == function["uid"]
    assert updated["expireTime"] == function["expireTime"]
    assert updated["build"] != function["build"]
    assert time_of(updated["updateTime"]) > time_of(function["updateTime"])


async def test_a_handler_moves_without_a_failed_request(mayfly: Door) -> None:
    await check_move(mayfly, "handler", version(1), version(2))


async def test_a_slow_new_handler_takes_over_when_it_is_ready(mayfly: Door) -> None:
    slow = version(2, "import time\ntime.sleep(1.5)\n")
    await check_move(mayfly, "handler", version(1), slow)


async def test_a_script_moves_without_a_failed_request(mayfly: Door) -> None:
    await check_move(mayfly, "script", server(1), server(2))


async def test_when_the_new_one_fails_the_old_one_goes_on(mayfly: Door) -> None:
    function = await mayfly.ready(handler=version(1))
    load = Load(mayfly, function)
    try:
        for broken in (example("broken.py"), "raise SystemError('no')\n" + version(2)):
            response = await mayfly.update(function, handler=broken)
            assert response.status_code == 200, response.text

            async def failure() -> Json | None:
                return (await mayfly.get(function)).get("failure")

            found = await until(failure, 15, what="the failure of the update")
            assert found["reason"] in {"SOURCE_SYNTAX", "HANDLER_IMPORT_FAILED"}
        await load.saw(1, 5)
    finally:
        await load.stop()
    assert load.failures == []
    assert set(load.versions) == {1}
    repaired = await mayfly.update(function, handler=version(3))
    assert repaired.status_code == 200

    async def third() -> bool:
        answer = await mayfly.call(function)
        return answer.json() == {"version": 3}

    await until(third, 15, what="version 3")
    assert not (await mayfly.get(function)).get("failure")


async def test_other_fields_change_without_a_new_build(mayfly: Door) -> None:
    function = await mayfly.ready(handler=version(1), labels={"a": "1"})
    response = await mayfly.update(function, labels={"a": "2"}, timeout="7s")
    assert response.status_code == 200, response.text
    found = await mayfly.get(function)
    assert (found["labels"], found["timeout"]) == ({"a": "2"}, "7s")
    assert (found["build"], found["revision"]) == (function["build"], 1)


async def test_a_new_environment_reaches_the_function(mayfly: Door) -> None:
    code = "import os\ndef handler(event, ctx):\n    return {'v': os.environ.get('V')}\n"
    function = await mayfly.ready(handler=code, env={"V": "1"})
    assert (await mayfly.call(function)).json() == {"v": "1"}
    response = await mayfly.update(function, env={"V": "2"})
    assert response.status_code == 200, response.text

    async def second() -> bool:
        return (await mayfly.call(function)).json() == {"v": "2"}

    await until(second, 15, what="the new variable")


async def test_only_the_fields_of_the_mask_change(mayfly: Door) -> None:
    function = await mayfly.ready(handler=version(1), labels={"a": "1"})
    response = await mayfly.http.patch(
        f"/v1/{function['name']}",
        params={"update_mask": "labels"},
        json={"labels": {"b": "2"}, "timeout": "9s"},
    )
    assert response.status_code == 200, response.text
    found = await mayfly.get(function)
    assert found["labels"] == {"b": "2"}
    assert found["timeout"] == function["timeout"]


async def test_a_kind_of_source_cannot_become_another(mayfly: Door) -> None:
    function = await mayfly.ready(handler=version(1))
    response = await mayfly.update(function, script=server(2))
    if response.status_code == 200:
        # Refused later, or done: either way without a failed request.

        async def outcome() -> bool:
            failure = (await mayfly.get(function)).get("failure")
            return bool(failure and failure["fix"]) or await _answers(mayfly, function, 2)

        await until(outcome, 30, what="the script, or why not")
    else:
        assert problem_of(response).fix
    assert (await mayfly.call(function)).status_code == 200


async def _answers(mayfly: Door, function: Json, number: int) -> bool:
    answer = await mayfly.call(function)
    assert answer.status_code == 200, answer.text
    return answer.json() == {"version": number}
