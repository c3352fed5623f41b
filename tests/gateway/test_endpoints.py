"""Functions on a cluster: several endpoints, shared ingresses, and what is cold."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from mayfly.v1.function_pb2 import State

from libs.rpc.addresses import Address
from services.gateway.admin import function_clusters
from services.gateway.endpoints import Names
from tests.gateway.conftest import Running, eventually
from tests.gateway.deployer import route
from tests.gateway.test_functions import raw, warm
from tests.gateway.upstream import Request, echo, serve

HOST = "fn-1.functions.svc.cluster.local"


def refusing_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def reports(gateway: Running) -> list[int]:
    """How many requests were open in each of the last reports, of which there are three."""
    return [report.in_flight for report in gateway.deployer.activity][-3:]


async def clusters(gateway: Running) -> list[str]:
    return await function_clusters(gateway.settings.socket("admin"))


async def test_requests_go_to_all_endpoints(gateway: Running) -> None:
    async with serve("127.0.0.1:0") as one, serve("127.0.0.2:0") as two:
        await gateway.deployer.put(route("f", one.endpoint, others=[two.endpoint]))
        await warm(gateway, "f")
        before = len(one.requests), len(two.requests)
        answers = await asyncio.gather(*(gateway.http.get("/f/f/") for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(one.requests) - before[0] > 5
        assert len(two.requests) - before[1] > 5


@pytest.mark.parametrize("held", [True, False])
async def test_an_endpoint_that_is_gone_costs_no_request(gateway: Running, held: bool) -> None:
    gone = f"tcp:127.0.0.1:{refusing_port()}"
    async with serve("127.0.0.2:0") as there:
        for number in range(1 if not held else 10):
            name = f"f{number}"
            await gateway.deployer.put(route(name, gone, others=[there.endpoint]))
            if not held:
                await warm(gateway, name)
            for _ in range(1 if held else 50):
                assert (await gateway.http.get(f"/f/{name}/")).status_code == 200


async def test_a_request_outlasts_the_move_of_the_only_endpoint(gateway: Running) -> None:
    """Its pod was deleted: first it refuses, then nobody is there, then a new one is."""
    async with serve("127.0.0.2:0") as old:
        await gateway.deployer.put(route("f", old.endpoint, others=[old.endpoint]))
        await warm(gateway, "f")
    gone = f"tcp:127.0.0.2:{refusing_port()}"
    await gateway.deployer.put(route("f", gone, others=[f"tcp:127.0.0.3:{refusing_port()}"]))
    began = time.monotonic()
    asking = [asyncio.create_task(gateway.http.get("/f/f/")) for _ in range(20)]
    await asyncio.wait(asking, timeout=0.7)
    await gateway.deployer.put(route("f", ""))
    await asyncio.wait(asking, timeout=3.5)
    assert not any(task.done() for task in asking), [task.result().text for task in asking]
    async with serve("127.0.0.4:0") as new:
        await gateway.deployer.put(route("f", new.endpoint))
        answers = await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {200}
        assert time.monotonic() - began > 4.0
        assert {a.json()["target"] for a in answers} == {"/"}
        assert {a.json()["headers"]["x-forwarded-prefix"] for a in answers} == {"/f/f"}
        assert (await gateway.http.get("/f/f/")).status_code == 200


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("trace", [{}, {"x-forwarded-host": "forged.example"}])
async def test_the_host_of_an_endpoint_replaces_the_callers(
    gateway: Running, held: bool, trace: dict[str, str]
) -> None:
    async with serve("127.0.0.2:0") as ingress:
        await gateway.deployer.put(route("f", ingress.endpoint, host=HOST))
        if not held:
            await warm(gateway, "f")
        for path, host in (("/f/f/x", "mayfly.example:80"), ("/x", "f.localhost")):
            answer = await gateway.http.get(path, headers={"host": host, **trace})
            seen = answer.json()["headers"]
            assert (seen["host"], seen["x-forwarded-host"]) == (HOST, host)
            assert answer.json()["target"] == "/x"
            if held:
                await gateway.deployer.put(route("f", ingress.endpoint, uid="2", host=HOST))


@pytest.mark.parametrize("held", [True, False])
async def test_every_request_of_a_connection_gets_the_host(gateway: Running, held: bool) -> None:
    async with serve("127.0.0.2:0") as ingress:
        await gateway.deployer.put(route("f", ingress.endpoint, host=HOST))
        if not held:
            await warm(gateway, "f")
        one = b"GET /f/f/ HTTP/1.1\r\nhost: a\r\n\r\n"
        await raw(
            gateway.port, one * 3 + one.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        )
        assert {r.headers["host"] for r in ingress.requests} == {HOST}
        assert {r.headers["x-forwarded-host"] for r in ingress.requests if r.target == "/"} <= {
            "a",
            gateway.url.removeprefix("http://"),
        }


@pytest.mark.parametrize("held", [True, False])
async def test_without_a_host_of_its_own_an_endpoint_gets_the_callers(
    gateway: Running, held: bool
) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("f", upstream.endpoint))
        if not held:
            await warm(gateway, "f")
        seen = (await gateway.http.get("/f/f/", headers={"host": "a.example"})).json()["headers"]
        assert seen["host"] == "a.example"
        assert "x-forwarded-host" not in seen


@pytest.mark.parametrize("held", [True, False])
async def test_an_ingress_that_was_not_answered_is_told_in_the_gateways_words(
    gateway: Running, held: bool
) -> None:
    proxys = (
        "content-type: text/plain; charset=utf-8\r\nx-content-type-options: nosniff\r\n",
        "server: envoy\r\n",
    )
    own = ("".join(proxys[:1]), proxys[1], "")
    said = ["".join(proxys), *own]

    async def ingress(request: Request) -> None:
        number = int(request.target.rpartition("/")[2])
        await request.respond(b"EOF\n", code=502, headers=said[number])

    async with serve("127.0.0.1:0", ingress) as upstream:
        for number in range(len(said)):
            await gateway.deployer.put(route(f"f{number}", upstream.endpoint, host=HOST))
            for _ in range(1 if held else 20):
                answer = await gateway.http.get(f"/f/f{number}/{number}")
                assert answer.status_code == 502
                if number:
                    assert answer.content == b"EOF\n"
                else:
                    assert answer.json()["error"]["reason"] == "FUNCTION_BROKE_OFF"
                    assert answer.headers["content-type"] == "application/json"


async def test_names_are_endpoints(gateway: Running) -> None:
    async with serve("127.0.0.1:0") as upstream:
        named = upstream.endpoint.replace("127.0.0.1", "localhost")
        await gateway.deployer.put(*(route(f"f{n}", named, host=f"h{n}") for n in range(3)))
        for n in range(3):
            await warm(gateway, f"f{n}")

        async def all_there() -> bool:
            return await clusters(gateway) == ["f0", "f1", "f2"]

        await eventually(all_there)
        for n in range(3):
            seen = (await gateway.http.get(f"/f/f{n}/")).json()["headers"]
            assert seen["host"] == f"h{n}"


async def test_a_name_that_moves_is_followed_and_looked_up_once_for_all() -> None:
    answers: list[list[str] | OSError] = [OSError("no such name"), ["10.0.0.1"], ["10.0.0.2"]]
    asked: list[str] = []
    changes: asyncio.Queue[str] = asyncio.Queue()

    def look_up(host: str) -> list[str]:
        asked.append(host)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    names = Names(look_up, refresh_seconds=0.02)
    names.changed = changes.put_nowait
    running = asyncio.create_task(names.run())
    wanted = [Address(host="ingress", port=80)]
    assert [names.resolve(wanted) for _ in range(5)] == [[]] * 5
    assert await asyncio.wait_for(changes.get(), 5) == "ingress"
    assert names.resolve(wanted) == [Address(host="10.0.0.1", port=80)]
    assert await asyncio.wait_for(changes.get(), 5) == "ingress"
    assert names.resolve(wanted) == [Address(host="10.0.0.2", port=80)]
    assert len(asked) == 3
    running.cancel()


async def test_a_cold_function_is_woken_once_for_all_its_requests(gateway: Running) -> None:
    woken = asyncio.Event()

    async def wake(_: str) -> None:
        await woken.wait()

    gateway.deployer.wake = wake
    await gateway.deployer.put(route("f", "", state=State.STATE_IDLE, cold=True))
    asking = [asyncio.create_task(gateway.http.post("/f/f/", content=b"x")) for _ in range(30)]
    await gateway.deployer.until(lambda: gateway.deployer.activations)
    await asyncio.wait(asking, timeout=0.3)
    assert gateway.deployer.activations == ["f"]
    asking.pop().cancel()  # one of them goes away
    async with serve("127.0.0.2:0") as upstream:
        await gateway.deployer.put(route("f", upstream.endpoint))
        answers = await asyncio.gather(*asking)
        assert {(a.status_code, a.json()["size"]) for a in answers} == {(200, 1)}
        woken.set()
        await warm(gateway, "f")
        assert await clusters(gateway) == ["f"]
        # Cold again.
        await gateway.deployer.put(route("f", "", state=State.STATE_IDLE, cold=True))
        assert await clusters(gateway) == []


async def test_what_waking_answers_is_enough(gateway: Running) -> None:
    """The route itself may come later."""
    async with serve("127.0.0.2:0") as upstream:

        async def wake(function_id: str) -> None:
            gateway.deployer.routes[function_id] = route(function_id, upstream.endpoint)

        gateway.deployer.wake = wake
        await gateway.deployer.put(route("f", "", state=State.STATE_IDLE, cold=True))
        assert (await gateway.http.get("/f/f/")).status_code == 200


async def test_a_function_that_stays_cold_is_not_ready_in_time(
    short_hold: Running,
) -> None:
    gateway = short_hold
    await gateway.deployer.put(route("f", "", state=State.STATE_READY, cold=True))
    began = time.monotonic()
    answer = await gateway.http.get("/f/f/")
    assert answer.status_code == 504
    assert answer.json()["error"]["message"].startswith("the function was not ready")
    assert 0.8 < time.monotonic() - began < 3
    assert 2 <= len(gateway.deployer.activations) <= 5


async def test_a_stream_outlives_the_change_of_endpoints(gateway: Running) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> None:
        if request.target != "/stream":
            await echo(request)
            return
        request.writer.write(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
        await request.chunk(b"one ")
        begun.set()
        await go_on.wait()
        await request.chunk(b"two")
        request.writer.write(b"0\r\n\r\n")

    async with serve("127.0.0.2:0", answer) as one, serve("127.0.0.3:0") as two:
        nobody = f"tcp:127.0.0.4:{refusing_port()}"
        await gateway.deployer.put(route("f", one.endpoint, others=[nobody]))
        await warm(gateway, "f")
        asking = asyncio.create_task(gateway.http.get("/f/f/stream"))
        await begun.wait()
        await gateway.deployer.until(lambda: gateway.deployer.in_flight("f") == 1)
        await gateway.deployer.put(route("f", one.endpoint, others=[two.endpoint]))
        await gateway.http.get("/f/f/")
        gateway.deployer.activity.clear()
        await gateway.deployer.until(lambda: reports(gateway) == [1, 1, 1])
        await gateway.deployer.put(route("f", two.endpoint, others=[nobody]))
        await gateway.deployer.put(route("f", "", state=State.STATE_IDLE, cold=True))
        go_on.set()
        assert (await asking).text == "one two"


NO_WAY = "server: envoy\r\n"
FROM_BEHIND = f"{NO_WAY}x-envoy-upstream-service-time: 3\r\n"


async def test_an_ingress_is_asked_until_it_knows_the_way(gateway: Running) -> None:
    """Before the function is READY; what comes from behind the ingress is passed on as it is."""

    async def ingress(request: Request) -> None:
        if len(upstream.requests) < 4:
            await request.respond(
                b"", code=404 if len(upstream.requests) % 2 else 503, headers=NO_WAY
            )
        else:
            await request.respond(b"its own", code=404, headers=FROM_BEHIND)

    async with serve("127.0.0.2:0", ingress) as upstream:
        early = route("f", upstream.endpoint, host=HOST, state=State.STATE_DEPLOYING)
        await gateway.deployer.put(early)
        answer = await gateway.http.get("/f/f/x")
        assert (answer.status_code, answer.text) == (404, "its own")
        assert len(upstream.requests) == 4
        assert {request.headers["host"] for request in upstream.requests} == {HOST}
        assert await clusters(gateway) == []  # Envoy does not look again


@pytest.mark.parametrize(
    ("method", "headers", "body"),
    [
        ("POST", {}, b"once"),
        ("DELETE", {}, b""),
        ("GET", {}, b"a body"),
        ("GET", {"connection": "upgrade", "upgrade": "websocket"}, b""),
    ],
)
async def test_what_may_not_be_sent_twice_waits_until_the_way_is_known(
    gateway: Running, method: str, headers: dict[str, str], body: bytes
) -> None:
    async with serve("127.0.0.2:0") as upstream:
        early = route("f", upstream.endpoint, host=HOST, state=State.STATE_DEPLOYING)
        await gateway.deployer.put(early)
        waiting = asyncio.create_task(
            gateway.http.request(method, "/f/f/", headers=headers, content=body)
        )
        # The other, which is sent on at once, has come later.
        assert (await gateway.http.get("/f/f/")).status_code == 200
        assert [request.method for request in upstream.requests] == ["GET"]
        assert upstream.requests[0].headers.get("content-length", "0") == "0"
        await gateway.deployer.put(route("f", upstream.endpoint, host=HOST))
        await waiting
        assert [request.method for request in upstream.requests] == ["GET", method]


async def test_an_ingress_that_never_knows_the_way(short_hold: Running) -> None:
    async def ingress(request: Request) -> None:
        await request.respond(b"", code=404, headers=NO_WAY)

    async with serve("127.0.0.2:0", ingress) as upstream:
        early = route("f", upstream.endpoint, host=HOST, state=State.STATE_DEPLOYING)
        await short_hold.deployer.put(early)
        answer = await short_hold.http.get("/f/f/")
        assert answer.status_code == 504
        # READY says that it is known: what the ingress says then is the answer.
        await short_hold.deployer.put(route("f", upstream.endpoint, host=HOST))
        assert (await short_hold.http.get("/f/f/")).status_code == 404


async def test_one_request_asks_an_ingress_for_all_that_wait(gateway: Running) -> None:
    async def ingress(request: Request) -> None:
        if len(upstream.requests) < 4:
            await request.respond(b"", code=404, headers=NO_WAY)
        else:
            await request.respond(b"here", headers=FROM_BEHIND)

    async with serve("127.0.0.2:0", ingress) as upstream:
        early = route("f", upstream.endpoint, host=HOST, state=State.STATE_DEPLOYING)
        await gateway.deployer.put(early)
        answers = await asyncio.gather(*(gateway.http.get("/f/f/") for _ in range(30)))
        assert {answer.text for answer in answers} == {"here"}
        assert len(upstream.requests) == 3 + len(answers)
