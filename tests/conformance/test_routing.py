"""What a client sends is what the function gets, byte for byte, by path and by host."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from tests.conformance.door import Door, Json, example, id_of, problem_of

ECHO = (
    "# /// script\n# dependencies = []\n# ///\n"
    "import http.server, json\n"
    "class Echo(http.server.BaseHTTPRequestHandler):\n"
    "    protocol_version = 'HTTP/1.1'\n"
    "    def answer(self):\n"
    "        size = int(self.headers.get('content-length', 0))\n"
    "        got = {'line': self.requestline, 'headers': list(self.headers.items()),\n"
    "               'body': self.rfile.read(size).decode('latin-1')}\n"
    "        status = int(self.headers.get('x-want', 200))\n"
    "        body = b'' if status in (204, 304) else json.dumps(got).encode()\n"
    "        self.send_response(status)\n"
    "        if body:\n"
    "            self.send_header('content-length', str(len(body)))\n"
    "        self.send_header('x-two', 'one')\n"
    "        self.send_header('x-two', 'two')\n"
    "        self.end_headers()\n"
    "        if self.command != 'HEAD':\n"
    "            self.wfile.write(body)\n"
    "    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = answer\n"
    "http.server.ThreadingHTTPServer(('', 8000), Echo).serve_forever()\n"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def echo(standing: Door) -> Json:
    """A script that answers with the request line, headers and body that reached it."""
    return await standing.ready(script=ECHO, ttl="1800s")


TARGETS = [
    "",
    "/",
    "/plain",
    "/a/b/c",
    "/a%2Fb",
    "/with%20space",
    "/%E2%82%AC",
    "//double//slashes/",
    "/semi;colon=1",
    "/trailing/",
    "?",
    "?a=1&a=2&b",
    "?q=%2F&x=a+b&y=a%20b",
    "?empty=&=value",
    "?semi;colon",
    "?nested=?&hash=%23",
    "/path?x=1;y=2&z=%zz",
    "/~tilde/$dollar/!bang/'quote'/(paren)/*star/+plus/,comma/:colon/@at",
    "/UPPER/lower?Case=Kept",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_path_and_query_arrive_byte_for_byte(mayfly: Door, echo: Json, target: str) -> None:
    by_path = await mayfly.raw(
        f"GET /f/{id_of(echo)}{target} HTTP/1.1\r\nHost: {mayfly.target}".encode()
    )
    assert by_path.status == 200, by_path.body
    wanted = target if target.startswith("/") else "/" + target
    assert by_path.json()["line"] in {
        f"GET {wanted} HTTP/1.1",
        f"GET {wanted.rstrip('?')} HTTP/1.1",
    }
    by_host = await mayfly.raw(
        f"GET {wanted} HTTP/1.1\r\nHost: {id_of(echo)}.localhost:{mayfly.port}".encode()
    )
    assert by_host.json()["line"] in {
        f"GET {wanted} HTTP/1.1",
        f"GET {wanted.rstrip('?')} HTTP/1.1",
    }


async def test_dots_do_not_lead_into_another_functions_files(mayfly: Door, echo: Json) -> None:
    other = await mayfly.ready(handler="def handler(event, ctx):\n    return 'other'\n")
    for dots in ("..", "%2e%2e", "%2E."):
        target = f"/f/{id_of(echo)}/{dots}/{id_of(other)}/x"
        answer = await mayfly.raw(f"GET {target} HTTP/1.1\r\nHost: {mayfly.target}".encode())
        # Handed on byte for byte to the function that was named, or resolved before it is chosen.
        assert answer.status in {200, 400, 404}, answer
        if answer.status == 200 and answer.body.strip(b'"\n') != b"other":
            assert answer.json()["line"] == f"GET /{dots}/{id_of(other)}/x HTTP/1.1"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_methods_and_bodies_arrive(mayfly: Door, echo: Json, method: str) -> None:
    answer = await mayfly.call(echo, "/x", method, content=b"\x00\xff body")
    assert answer.status_code == 200
    assert answer.json()["line"] == f"{method} /x HTTP/1.1"
    assert answer.json()["body"].encode("latin-1") == b"\x00\xff body"


async def test_head_has_no_body(mayfly: Door, echo: Json) -> None:
    answer = await mayfly.call(echo, "/x", "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("status", [201, 204, 301, 304, 400, 404, 418, 500, 503])
async def test_a_functions_own_status_is_passed_on(mayfly: Door, echo: Json, status: int) -> None:
    answer = await mayfly.call(echo, "/x", headers={"x-want": str(status)})
    assert answer.status_code == status
    if status >= 400:
        assert answer.json()["line"] == "GET /x HTTP/1.1"


async def test_headers_go_through_both_ways(mayfly: Door, echo: Json, driver: str) -> None:
    answer = await mayfly.call(
        echo, "/x", headers={"x-one": "a, b", "cookie": "a=1; b=2", "authorization": "Bearer t"}
    )
    got = {k.lower(): v for k, v in answer.json()["headers"]}
    assert (got["x-one"], got["cookie"], got["authorization"]) == ("a, b", "a=1; b=2", "Bearer t")
    assert answer.headers.get_list("x-two") == ["one", "two"]
    assert got["x-request-id"]
    assert got["x-forwarded-proto"] == "http"
    assert got["x-forwarded-prefix"] == f"/f/{id_of(echo)}"
    # Knative's ingress is told by the host which function is meant.
    assert got["x-forwarded-host" if driver == "knative" else "host"] == mayfly.target


async def test_internal_routing_cannot_be_smuggled(mayfly: Door, echo: Json) -> None:
    other = await mayfly.ready(handler="def handler(event, ctx):\n    return 'other'\n")
    for name in ("x-mayfly-function", "x-envoy-original-path", "x-mayfly-cluster", "x-cluster"):
        answer = await mayfly.call(echo, "/x", headers={name: id_of(other)})
        assert answer.json()["line"] == "GET /x HTTP/1.1", name


async def test_infrastructure_cannot_be_named(mayfly: Door) -> None:
    for path in ("/f/_hold", "/f/_deployer/x", "/f/_control", "/f/__", "/f/-", "/f/%00", "/f/a.b"):
        answer = await mayfly.raw(f"GET {path} HTTP/1.1\r\nHost: {mayfly.target}".encode())
        assert answer.status in {400, 404}, (path, answer)
    answer = await mayfly.raw(b"GET / HTTP/1.1\r\nHost: _hold.localhost")
    assert answer.status in {400, 404}, answer


async def test_by_host_with_and_without_port(mayfly: Door, echo: Json) -> None:
    for host in (
        f"{id_of(echo)}.localhost",
        f"{id_of(echo)}.localhost:{mayfly.port}",
        f"{id_of(echo).upper()}.LOCALHOST",
    ):
        answer = await mayfly.http.get("/v1/functions?x=1", headers={"host": host})
        assert answer.json()["line"] == "GET /v1/functions?x=1 HTTP/1.1", host


async def test_unknown_hosts_are_404(mayfly: Door) -> None:
    host = f"{mayfly.new_id('no')}.localhost"
    problem = problem_of(await mayfly.http.get("/x", headers={"host": host}))
    assert (problem.http, problem.reason) == (404, "NOT_FOUND")


async def test_a_second_label_is_no_function(mayfly: Door, echo: Json) -> None:
    host = f"deep.{id_of(echo)}.localhost"
    answer = await mayfly.http.get("/x", headers={"host": host})
    assert answer.status_code == 404


async def test_cors_and_options_are_the_functions_own(mayfly: Door) -> None:
    code = (
        "def handler(event, ctx):\n"
        "    return '', 204, {'access-control-allow-origin': event['headers']['origin']}\n"
    )
    function = await mayfly.ready(handler=code)
    answer = await mayfly.call(
        function, "/", "OPTIONS", headers={"origin": "http://localhost:3000"}
    )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


async def test_functions_are_kept_apart(mayfly: Door) -> None:
    code = (
        "def handler(event, ctx):\n    return {'id': ctx.function_id, 'n': event['query']['n']}\n"
    )
    made = [await mayfly.ready(handler=code) for _ in range(5)]
    calls = [(f, n) for n in range(20) for f in made]
    answers = await asyncio.gather(*(mayfly.call(f, f"?n={n}") for f, n in calls))
    for (function, number), answer in zip(calls, answers, strict=True):
        assert answer.json() == {"id": id_of(function), "n": str(number)}


async def test_the_raw_path_reaches_asgi(mayfly: Door) -> None:
    function = await mayfly.create(script=example("live.py"))
    answer = await mayfly.raw(
        f"GET /f/{id_of(function)}/a%2Fb?x=%26;y HTTP/1.1\r\nHost: {mayfly.target}".encode()
    )
    assert answer.status == 200, answer.body
    assert answer.json()["raw_path"] == "/a%2Fb"
    assert answer.json()["raw_query"] == "x=%26;y"
