"""The URL works from the moment it is returned: who comes early waits and is served."""

from __future__ import annotations

import asyncio

import pytest

from tests.conformance.door import Door, id_of, problem_of

HELLO = "def handler(event, ctx):\n    return {'id': ctx.function_id}\n"
SLOW_IMPORT = "import time\ntime.sleep(1.5)\ndef handler(event, ctx):\n    return event['body']\n"


async def test_a_request_right_after_creation_is_served(mayfly: Door) -> None:
    function = await mayfly.create(handler=HELLO)
    answer = await mayfly.call(function)
    assert (answer.status_code, answer.json()) == (200, {"id": id_of(function)})


async def test_requests_wait_while_it_starts_and_keep_their_bodies(mayfly: Door) -> None:
    function = await mayfly.create(handler=SLOW_IMPORT)
    answers = await asyncio.gather(
        *(mayfly.call(function, method="POST", content=f"body {i}") for i in range(20))
    )
    assert [(a.status_code, a.text.strip('"')) for a in answers] == [
        (200, f"body {i}") for i in range(20)
    ]


async def test_a_large_early_body_is_kept_whole(mayfly: Door) -> None:
    code = (
        "import time\ntime.sleep(0.5)\n"
        "def handler(event, ctx):\n    return {'size': len(event['body'])}\n"
    )
    function = await mayfly.create(handler=code)
    answer = await mayfly.call(function, method="POST", content=b"x" * 5_000_000)
    assert answer.json() == {"size": 5_000_000}


@pytest.mark.timeout(180)
async def test_many_functions_each_called_at_once(mayfly: Door, on_cluster: bool) -> None:
    # One node ends and starts some three pods a second.
    count = 20 if on_cluster else 100
    gate = asyncio.Semaphore(10)

    async def one() -> tuple[int, object, str]:
        async with gate:
            function = await mayfly.create(handler=HELLO)
            answer = await mayfly.call(function)
            await mayfly.delete(function)
        return answer.status_code, answer.json(), id_of(function)

    answers = await asyncio.gather(*(one() for _ in range(count)))
    wrong = [a for a in answers if a[:2] != (200, {"id": a[2]})]
    assert wrong == []


async def test_early_requests_reach_it_by_host_too(mayfly: Door) -> None:
    function = await mayfly.create(handler=SLOW_IMPORT)
    answer = await mayfly.http.post(
        "/x", content="by host", headers={"host": f"{id_of(function)}.localhost"}
    )
    assert (answer.status_code, answer.text.strip('"')) == (200, "by host")


async def test_an_early_request_to_a_deleted_function_is_told(mayfly: Door) -> None:
    function = await mayfly.create(handler="import time\ntime.sleep(20)\n" + HELLO)
    waiting = asyncio.create_task(mayfly.call(function))
    await mayfly.delete(function)
    answer = await asyncio.wait_for(waiting, 15)
    assert answer.status_code in (404, 502, 503), answer.text
    assert problem_of(answer).message


async def test_unknown_functions_are_refused_at_once(mayfly: Door) -> None:
    loop = asyncio.get_running_loop()
    for path in (f"/f/{mayfly.new_id('no')}", f"/f/{mayfly.new_id('no')}/deeper?x=1"):
        began = loop.time()
        problem = problem_of(await mayfly.http.get(path))
        assert (problem.http, problem.reason) == (404, "NOT_FOUND")
        assert problem.fix
        assert loop.time() - began < 5.0  # requests are held for longer
