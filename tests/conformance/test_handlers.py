"""What a Python handler may rely on."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.conformance.door import Door, Json, example, id_of, problem_of


async def answer_of(
    mayfly: Door, code: str, path: str = "", method: str = "GET", **options: Any
) -> httpx.Response:
    """Create a handler from the body of its function and call it once."""
    function = await mayfly.create(handler=code)
    return await mayfly.call(function, path, method, **options)


async def test_the_event(mayfly: Door) -> None:
    code = (
        "def handler(event, ctx):\n"
        "    return {k: event[k] for k in ('method', 'path', 'headers', 'query', 'body')}\n"
    )
    answer = await answer_of(
        mayfly, code, "/a/b%20c?x=1&y=%C3%A9", "POST", content="héj", headers={"X-Mixed-Case": "V"}
    )
    event = answer.json()
    assert event["method"] == "POST"
    assert event["path"] in {"/a/b%20c", "/a/b c"}
    assert event["query"] == {"x": "1", "y": "é"}
    assert event["headers"]["x-mixed-case"] == "V"
    assert all(name == name.lower() for name in event["headers"])
    assert event["body"] == "héj"


async def test_the_context(mayfly: Door) -> None:
    code = (
        "import time\n"
        "def handler(event, ctx):\n"
        "    return {'id': ctx.function_id, 'request': ctx.request_id,\n"
        "            'version': ctx.contract_version}\n"
    )
    function = await mayfly.create(handler=code)
    first = (await mayfly.call(function, headers={"x-request-id": "mine"})).json()
    assert (first["id"], first["request"]) == (id_of(function), "mine")
    assert first["version"]
    made_up = {(await mayfly.call(function)).json()["request"] for _ in range(3)}
    assert len(made_up) == 3


async def test_a_body_that_is_no_text_comes_as_bytes(mayfly: Door) -> None:
    code = "def handler(event, ctx):\n    return event['body']\n"
    answer = await answer_of(mayfly, code, "", "POST", content=b"\x00\xff\xfe")
    assert answer.content == b"\x00\xff\xfe"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def evaluates(standing: Door) -> Json:
    """A handler that returns what its body says, as Python."""
    code = "def handler(event, ctx):\n    return eval(event['body'])\n"
    return await standing.ready(handler=code, ttl="1800s")


@pytest.mark.parametrize(
    ("returned", "status", "kind", "content"),
    [
        ("{'a': [1, None, 'ü']}", 200, "application/json", '{"a":[1,null,"ü"]}'),
        ("[1, 2]", 200, "application/json", "[1,2]"),
        ("3.5", 200, "application/json", "3.5"),
        ("({'made': 1}, 201)", 201, "application/json", '{"made":1}'),
        ("('teapot', 418, {'x-pot': 'tea'})", 418, "", "teapot"),
        ("('<p>', 200, {'content-type': 'text/html'})", 200, "text/html", "<p>"),
        ("b'raw'", 200, "application/octet-stream", "raw"),
        ("'text'", 200, "", "text"),
    ],
)
async def test_what_it_returns_is_the_response(
    mayfly: Door, evaluates: Json, returned: str, status: int, kind: str, content: str
) -> None:
    answer = await mayfly.call(evaluates, method="POST", content=returned)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith(kind)
    got = answer.text.strip('"')
    if kind == "application/json":
        assert json.loads(answer.text) == json.loads(content)
    else:
        assert got == content
    if "x-pot" in returned:
        assert answer.headers["x-pot"] == "tea"


async def test_async_handlers_run_side_by_side(mayfly: Door) -> None:
    code = (
        "import asyncio\n"
        "async def handler(event, ctx):\n    await asyncio.sleep(0.5)\n    return 'slept'\n"
    )
    function = await mayfly.ready(handler=code, concurrency=10, maxInstances=1)
    began = time.monotonic()
    answers = await asyncio.gather(*(mayfly.call(function) for _ in range(10)))
    assert {a.status_code for a in answers} == {200}
    assert time.monotonic() - began < 3.0


async def test_sync_handlers_run_side_by_side(mayfly: Door) -> None:
    code = "import time\ndef handler(event, ctx):\n    time.sleep(0.5)\n    return 'slept'\n"
    function = await mayfly.ready(handler=code, concurrency=10, maxInstances=1)
    began = time.monotonic()
    answers = await asyncio.gather(*(mayfly.call(function) for _ in range(10)))
    assert {a.status_code for a in answers} == {200}
    assert time.monotonic() - began < 3.0


STREAMS = {
    "generator": "def handler(event, ctx):\n    for i in range(3):\n        yield f'{i}\\n'\n",
    "asynchronous generator": (
        "async def handler(event, ctx):\n    for i in range(3):\n        yield f'{i}\\n'.encode()\n"
    ),
    "iterator returned": (
        "def handler(event, ctx):\n    return iter([b'0\\n', '1\\n', b'2\\n'])\n"
    ),
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_iterators_are_streamed(mayfly: Door, kind: str) -> None:
    answer = await answer_of(mayfly, STREAMS[kind])
    assert (answer.status_code, answer.text) == (200, "0\n1\n2\n")


async def test_each_piece_leaves_at_once(mayfly: Door) -> None:
    function = await mayfly.ready(handler=example("countdown.py"))
    arrived: list[tuple[str, float]] = []
    async with mayfly.http.stream("GET", f"/f/{id_of(function)}?from=4&every=0.4") as response:
        async for line in response.aiter_lines():
            arrived.append((line, time.monotonic()))
    assert [line for line, _ in arrived] == ["4", "3", "2", "1", "liftoff"]
    assert arrived[-1][1] - arrived[0][1] > 1.2


async def test_a_stream_that_breaks_is_seen_to_break(mayfly: Door) -> None:
    code = "def handler(event, ctx):\n    yield 'first\\n'\n    raise ValueError('in mid-stream')\n"
    function = await mayfly.ready(handler=code)
    with pytest.raises(httpx.RemoteProtocolError):
        await mayfly.call(function)
    await mayfly.log_holding(function, "in mid-stream")
    healthy = await mayfly.http.get("/healthz")
    assert healthy.status_code == 200


async def test_what_is_not_json_is_500_with_the_cause_in_the_logs(mayfly: Door) -> None:
    code = "def handler(event, ctx):\n    return {'when': object()}\n"
    function = await mayfly.create(handler=code)
    answer = await mayfly.call(function, headers={"x-request-id": "odd"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal", "request_id": "odd"}
    text = await mayfly.log_holding(function, "object")
    assert "JSON" in text


@pytest.mark.parametrize(
    "returned",
    ["('x', 99)", "('x', 1000)", "('x', 200, {'a': 'b\\nc'})", "('x', 200, {'a b': 'c'})"],
)
async def test_a_malformed_answer_is_500(mayfly: Door, evaluates: Json, returned: str) -> None:
    answer = await mayfly.call(evaluates, method="POST", content=returned)
    assert answer.status_code == 500, answer.text
    assert answer.json()["error"] == "internal"
    assert "b\nc" not in str(answer.headers)


async def test_globals_last_as_long_as_the_instance(mayfly: Door) -> None:
    code = (
        "calls = []\n"
        "def handler(event, ctx):\n    calls.append(1)\n    return {'calls': len(calls)}\n"
    )
    function = await mayfly.ready(handler=code, maxInstances=1)
    counts = [(await mayfly.call(function)).json()["calls"] for _ in range(3)]
    assert counts == [1, 2, 3]


async def test_its_own_files_can_be_imported_and_tmp_written(mayfly: Door) -> None:
    code = (
        "import pathlib, tempfile\n"
        "def handler(event, ctx):\n"
        "    file = pathlib.Path('/tmp/note')\n"
        "    file.write_text('kept')\n"
        "    with tempfile.NamedTemporaryFile() as t:\n        t.write(b'x' * 1000)\n"
        "    return file.read_text()\n"
    )
    answer = await answer_of(mayfly, code)
    assert answer.text.strip('"') == "kept"


async def test_a_request_over_its_time_is_504_and_the_next_is_served(mayfly: Door) -> None:
    code = (
        "import time\n"
        "def handler(event, ctx):\n"
        "    if event['query'].get('hang'):\n        time.sleep(600)\n"
        "    return 'fine'\n"
    )
    function = await mayfly.ready(handler=code, timeout="1s")
    began = time.monotonic()
    problem = problem_of(await mayfly.call(function, "?hang=1"))
    assert (problem.http, problem.reason) == (504, "FUNCTION_TIMEOUT"), problem
    assert time.monotonic() - began < 3.0
    assert (await mayfly.call(function)).text.strip('"') == "fine"


async def test_a_stream_may_last_longer_than_the_timeout(mayfly: Door) -> None:
    function = await mayfly.ready(handler=example("countdown.py"), timeout="1s")
    answer = await mayfly.call(function, "?from=5&every=0.5")
    assert answer.text.endswith("liftoff\n")


@pytest.mark.needs_index
async def test_requirements_of_a_handler(mayfly: Door) -> None:
    function = await mayfly.create(handler=example("markdown.py"))
    answer = await mayfly.call(function, method="POST", content="# Hej")
    assert answer.text == "<h1>Hej</h1>\n"
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.needs_index
async def test_functions_with_the_same_requirements_share_an_environment(
    mayfly: Door, driver: str
) -> None:
    first = await mayfly.ready(handler=example("markdown.py"), minInstances=1)
    second = await mayfly.ready(handler=example("markdown.py") + "\n# another\n")
    assert first["build"] != second["build"]
    if driver != "deployment":  # there each instance installs what is locked, for itself alone
        builds = [(await mayfly.http.get(f"/v1/{f['build']}")).json() for f in (first, second)]
        digests = {b["artefact"]["environmentDigest"] for b in builds}
        assert len(digests) == 1
        assert digests != {""}
    await mayfly.delete(first)
    await mayfly.receipt(first)
    assert (await mayfly.call(second, method="POST", content="*x*")).status_code == 200


async def test_expect_continue_and_keep_alive(mayfly: Door) -> None:
    function = await mayfly.ready(handler="def handler(e, c):\n    return {'n': len(e['body'])}\n")
    reader, writer = await asyncio.open_connection(mayfly.host, mayfly.port)
    try:
        for size in (10, 20):
            head = (
                f"POST /f/{id_of(function)} HTTP/1.1\r\nHost: {mayfly.target}\r\n"
                f"Content-Length: {size}\r\nExpect: 100-continue\r\n\r\n"
            )
            writer.write(head.encode())
            line = await asyncio.wait_for(reader.readline(), 5)
            assert b"100" in line, line
            await reader.readline()
            writer.write(b"x" * size)
            status = await asyncio.wait_for(reader.readline(), 5)
            assert b"200" in status
            length = 0
            chunked = False
            while (line := await reader.readline()).strip():
                name, _, value = line.decode().partition(":")
                length = int(value) if name.lower() == "content-length" else length
                chunked = chunked or name.lower() == "transfer-encoding"
            if chunked:
                length = int(await reader.readline(), 16)
                body = await reader.readexactly(length)
                await reader.readuntil(b"0\r\n\r\n")
            else:
                body = await reader.readexactly(length)
            assert f"{size}".encode() in body
    finally:
        writer.close()
