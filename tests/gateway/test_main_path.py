"""Functions through the real Envoy: by path and by host, held, warm, refused."""

from __future__ import annotations

from tests.gateway.conftest import Running
from tests.gateway.deployer import route
from tests.gateway.upstream import serve


async def test_a_function_answers_by_path_and_by_host(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("hello", upstream.endpoint))
        for _ in range(3):
            answer = (await gateway.http.get("/f/hello/a/b?x=1")).json()
            assert answer["target"] == "/a/b?x=1"
            assert answer["headers"]["x-forwarded-prefix"] == "/f/hello"
            host = {"host": "hello.localhost:8080"}
            answer = (await gateway.http.get("/a/b?x=1", headers=host)).json()
            assert answer["target"] == "/a/b?x=1"
            assert "x-forwarded-prefix" not in answer["headers"]


async def test_an_unknown_function_is_404(gateway: Running) -> None:
    answer = await gateway.http.get("/f/nobody/")
    assert answer.status_code == 404
    assert answer.json()["error"]["reason"] == "NOT_FOUND"
    assert answer.headers["content-type"] == "application/json"


async def test_v1_is_transcoded(gateway: Running) -> None:
    answer = await gateway.http.get("/v1/functions/hello")
    assert answer.json() == {"name": "functions/hello"}, answer.text
    answer = await gateway.http.post(
        "/v1/functions?function_id=hello", json={"runtime": "python", "handler": "x", "ttl": "600s"}
    )
    assert answer.json()["name"] == "functions/hello"
    for path in ("/v1/runtimes", "/v1/janitor:status"):
        assert (await gateway.http.get(path)).status_code == 200
