"""The programs of examples/, unchanged."""

from __future__ import annotations

import asyncio

import pytest
from mcp import Client

from tests.conformance.door import Door, example, id_of

pytestmark = pytest.mark.needs_index


async def test_two_programs_on_port_8000_at_once(mayfly: Door) -> None:
    notes, live, files = await asyncio.gather(
        mayfly.ready(script=example("notes_api.py")),
        mayfly.ready(script=example("live.py")),
        mayfly.ready(script=example("big_files.py")),
    )
    for _ in range(3):
        assert (await mayfly.call(notes, "/")).json()["app"] == "notes"
        assert (await mayfly.call(live, "/")).json()["app"] == "live"
        assert len((await mayfly.call(files, "/?bytes=1000")).content) == 1000


async def test_the_same_program_twice_keeps_its_memory_apart(mayfly: Door) -> None:
    first, second = await asyncio.gather(
        *(mayfly.ready(script=example("notes_api.py"), maxInstances=1) for _ in range(2))
    )
    for count in (1, 2):
        made = await mayfly.call(first, "/notes", "POST", json={"text": f"note {count}"})
        assert (made.status_code, made.json()["id"]) == (201, count)
    assert (await mayfly.call(first, "/notes/2")).json() == {"text": "note 2", "done": False}
    missing = await mayfly.call(second, "/notes/2")
    assert (missing.status_code, missing.json()) == (404, {"detail": "no such note"})


async def test_fastapi_gets_the_query_and_its_own_errors_through(mayfly: Door) -> None:
    function = await mayfly.create(script=example("notes_api.py"))
    index = await mayfly.call(function, "/?a=%2F;b&c=1")
    assert index.json()["query"] == "a=%2F;b&c=1"
    invalid = await mayfly.call(function, "/notes", "POST", json={"text": 5})
    assert invalid.status_code == 422


@pytest.mark.timeout(180)
async def test_an_mcp_server_by_the_official_client(mayfly: Door) -> None:
    function = await mayfly.ready(script=example("mcp_server.py"))
    url = f"{mayfly.url}/f/{id_of(function)}/mcp"
    for mode in ("auto", "legacy"):
        async with Client(url, mode=mode) as client:
            tools = await client.list_tools()
            assert {t.name for t in tools.tools} == {"add", "summary"}
            added = await client.call_tool("add", {"a": 1, "b": 2})
            assert added.structured_content == {"result": 3.0}
            answers = await asyncio.gather(
                *(client.call_tool("add", {"a": n, "b": n}) for n in range(10))
            )
            assert [a.structured_content["result"] for a in answers] == [2.0 * n for n in range(10)]
            greeting = await client.read_resource("greeting://you")
            assert greeting.contents[0].text == "Hello, you!"


async def test_the_name_in_the_script_block_needs_no_request(mayfly: Door) -> None:
    # `name` in [tool.mayfly] is read by clients; the service takes the id of the request.
    function = await mayfly.ready(script=example("live.py"))
    assert id_of(function) != "live"


@pytest.mark.needs_go
@pytest.mark.timeout(360)
async def test_go(mayfly: Door) -> None:
    runtimes = {r["name"]: r for r in (await mayfly.http.get("/v1/runtimes")).json()["runtimes"]}
    if not runtimes["go"].get("available"):
        pytest.skip(f"no Go here: {runtimes['go']['unavailableReason']}")
    # The first build of all compiles Go's library as well: longer than a request is held.
    function = await mayfly.ready(runtime="go", handler=example("hello.go"))
    answer = await mayfly.call(function, "/p?name=you")
    assert answer.json() == {"hello": "you", "function": id_of(function), "path": "/p"}
