"""The gateway's pure parts: targets, heads, addresses, templates, clusters, reports, settings."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.json_format import ParseDict
from hpack import Encoder
from mayfly.v1.function_pb2 import Protocol
from pydantic import ValidationError

from libs.rpc.addresses import Address, parse
from services.gateway import http1, http2
from services.gateway.activity import Activity, Function
from services.gateway.bootstrap import bootstrap
from services.gateway.config import Settings
from services.gateway.contracts import methods, transcodable
from services.gateway.endpoints import addresses
from services.gateway.envoy_config import PUBLIC_SERVICES, Inputs
from services.gateway.errors import NOT_FOUND
from services.gateway.target import Target, target_of
from services.gateway.transcode import path_pattern, response_bodies
from services.gateway.xds import assignment, cluster
from tests.gateway.deployer import route

CONTRACTS = FileDescriptorSet.FromString(
    resources.files("mayfly.v1").joinpath("descriptors.pb").read_bytes()
)


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("x", "/f/hello", Target("hello", "/f/hello")),
        ("x:80", "/f/hello/a?b", Target("hello", "/f/hello")),
        ("x", "/f/hello?b=/f/c", Target("hello", "/f/hello")),
        ("x", "/f/0-a", Target("0-a", "/f/0-a")),
        ("x", "/f/_hold/", None),
        ("x", "/f/-a/", None),
        ("x", "/f/A/", None),
        ("x", "/f/a.b/", None),
        ("x", "/f/", None),
        ("x", "/g/hello", None),
        ("Hello.LOCALHOST:8080", "/f/other", Target("hello")),
        ("a.b.localhost", "/f/other", None),
        ("_x.localhost", "/f/other", None),
        ("hello.my.example", "/", Target("hello")),
        ("localhost", "/f/hello", Target("hello", "/f/hello")),
    ],
)
def test_which_function(host: str, path: str, expected: Target | None) -> None:
    assert target_of(host, path, ("localhost", "my.example")) == expected


def test_http1_heads() -> None:
    head = http1.parse_head(b"POST /a?b HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
    assert (head.method, head.path, head.get("host"), head.get("x-a")) == ("POST", "/a?b", "x", "1")
    changed = http1.with_headers(head, {"x-a": "", "host": "y"})
    assert changed == b"POST /a?b HTTP/1.1\r\nhost: y\r\n\r\n"
    for wrong in (b"GET /\r\n\r\n", b"GET / HTTP/2\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"):
        with pytest.raises(http1.MalformedHead):
            http1.parse_head(wrong)
    assert http1.status_code(b"HTTP/1.1 204 No") == 204
    assert http1.status_code(b"nonsense") == 0
    refused = http1.refusal(NOT_FOUND)
    head_part, _, content = refused.partition(b"\r\n\r\n")
    assert f"content-length: {len(content)}".encode() in head_part
    assert json.loads(content)["error"]["code"] == 404


@pytest.mark.parametrize("split", [False, True])
def test_http2_openings(split: bool) -> None:
    lines = [
        (":method", "POST"),
        (":path", "/a"),
        (":authority", "x.localhost"),
        ("te", "trailers"),
    ]
    block = Encoder().encode(lines)
    settings = http2.frame(http2.SETTINGS, 0, 0)
    if split:
        headers = http2.frame(http2.HEADERS, http2.END_STREAM, 1, block[:3])
        headers += http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, block[3:])
    else:
        headers = http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, block)
    whole = http2.PREFACE + settings + headers
    for end in range(len(whole)):
        assert http2.opening(whole[:end]) is None
    found = http2.opening(whole + b"more")
    assert found is not None
    opening, end = found
    assert (end, opening.stream, opening.ended) == (len(whole), 1, True)
    assert (opening.head.path, opening.head.get("host")) == ("/a", "x.localhost")
    same = http2.forward(opening, {"x-forwarded-prefix": ""})
    again = http2.opening(same)
    assert again is not None
    assert again[0].block == block
    changed = http2.opening(http2.forward(opening, {"te": "", "x-new": "1"}))
    assert changed is not None
    assert (changed[0].head.get("te"), changed[0].head.get("x-new")) == ("", "1")
    moved = http2.opening(
        http2.forward(opening, {"host": "fn-1.svc", "x-forwarded-prefix": "/f/a"})
    )
    assert moved is not None
    names = [name for name, _ in moved[0].head.lines]
    assert names.index("x-forwarded-prefix") > max(names.index(f":{n}") for n in ("path", "method"))
    assert names.count(":authority") == 1
    assert moved[0].head.get(":authority") == "fn-1.svc"
    with pytest.raises(http1.MalformedHead):
        http2.opening(b"GET / HTTP/1.1\r\n")


def test_http2_refusals_are_trailers_alone() -> None:
    settings, acknowledgement, headers = http2.frames(http2.refusal(NOT_FOUND, 3, settled=False))
    assert (settings.type, acknowledgement.flags) == (http2.SETTINGS, http2.ACK)
    assert (headers.stream, headers.flags) == (3, http2.END_HEADERS | http2.END_STREAM)
    assert http2.status_code(http2.refusal(NOT_FOUND, 3, settled=True)) == 200


def test_addresses() -> None:
    assert parse("unix:/a/b") == Address(path="/a/b")
    assert parse("tcp:127.0.0.1:80") == Address(host="127.0.0.1", port=80) == parse("127.0.0.1:80")
    assert str(parse("[::1]:80")) == "[::1]:80"
    assert (parse("deployer:7002").is_name, parse("127.0.0.1:1").is_name) == (True, False)
    for wrong in (
        "unix:relative",
        "host",
        "host:",
        "host:x",
        ":80",
        "host:70000",
        "unix:/" + "a" * 200,
    ):
        with pytest.raises(ValueError, match=r"unix socket|must be|longer"):
            parse(wrong)


def test_clusters() -> None:
    one = route("a", "tcp:127.0.0.1:81", timeout=1.5, protocol=Protocol.PROTOCOL_HTTP2)
    made = cluster(one, addresses(one), 2.0)
    assert made.name == "a"
    endpoint = made.load_assignment.endpoints[0].lb_endpoints[0].endpoint
    address = endpoint.address.socket_address
    assert (address.address, address.port_value, endpoint.hostname) == ("127.0.0.1", 81, "")
    assert made.metadata.filter_metadata["mayfly"]["timeout_ms"] == "1500"
    assert cluster(route("a", "unix:/x"), [Address(path="/x")], 2.0).name == "a"
    with pytest.raises(ValueError, match="must be"):
        addresses(route("a", "nowhere"))


def test_a_cluster_has_all_endpoints_and_their_host() -> None:
    several = route("a", "tcp:10.0.0.1:80")
    several.endpoints[:] = ["tcp:10.0.0.1:80", "tcp:10.0.0.2:80"]
    several.host = "fn-1.functions.svc.cluster.local"
    assert not cluster(several, addresses(several), 2.0).HasField("load_assignment")
    made = assignment(several, addresses(several))
    found = [one.endpoint for one in made.endpoints[0].lb_endpoints]
    assert [e.address.socket_address.address for e in found] == ["10.0.0.1", "10.0.0.2"]
    assert {e.hostname for e in found} == {"fn-1.functions.svc.cluster.local"}


def test_the_bootstrap_is_what_envoys_schema_takes() -> None:
    socket = Address(path="/s")
    inputs = Inputs(
        node="n",
        listen=Address(host="127.0.0.1", port=1),
        admin=socket,
        api=socket,
        control=socket,
        hold=socket,
        hold_http2=socket,
        pages=socket,
        public=socket,
        deployer=parse("deployer:7002"),
        builder=socket,
        janitor=socket,
        descriptors="/d",
    )
    made = bootstrap(inputs)
    for part in ("admin", "cluster_manager", "stats_config", "layered_runtime"):
        ParseDict({part: made[part]}, Bootstrap())
    clusters = {c["name"]: c for c in made["static_resources"]["clusters"]}
    assert all(name.startswith("_") for name in clusters)
    assert clusters["_deployer"]["type"] == "STRICT_DNS"
    assert clusters["_builder"]["type"] == "STATIC"


def test_http_rules() -> None:
    assert path_pattern("/v1/{name=functions/*}:renew") == "^/v1/functions/[^/:]+%:renew$"
    assert path_pattern("/v1/functions") == "^/v1/functions$"
    found = {m.name: m for m in methods(CONTRACTS, PUBLIC_SERVICES)}
    assert (found["CreateFunction"].verb, found["CreateFunction"].body) == ("post", "function")
    assert (found["CreateBuild"].verb, found["WatchFunction"].streaming) == ("", True)
    bodies = response_bodies(found.values())
    assert "/mayfly.v1.FunctionService/GetFunction" in bodies
    assert "/mayfly.v1.FunctionService/ListFunctions" not in bodies
    stripped = {m.name: m for m in methods(transcodable(CONTRACTS), PUBLIC_SERVICES)}
    assert not any(m.response_body for m in stripped.values())
    assert stripped["CreateFunction"].body == "function"


def test_activity_reports() -> None:
    now = [100.0]
    activity = Activity(lambda name: "" if name == "gone" else f"u-{name}", lambda: now[0])
    assert activity.report() is None
    with activity.request(Function("a", "u-a")):
        activity.envoy_reported({"b": (5, 2), "gone": (1, 1)})
        now[0] = 101.0
        report = activity.report()
        assert report is not None
        seen = {f.function_id: (f.uid, f.requests, f.in_flight) for f in report.functions}
        assert seen == {"a": ("u-a", 1, 1), "b": ("u-b", 5, 2)}
        assert {f.last_use_time.seconds for f in report.functions} == {101}
        assert report.interval.seconds == 1
    activity.envoy_reported({})
    report = activity.report()
    assert report is not None
    assert {(f.function_id, f.requests, f.in_flight) for f in report.functions} == {
        ("a", 0, 0),
        ("b", 0, 0),
    }
    assert activity.report() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("listen", "8080"),
        ("listen", "unix:/x"),
        ("deployer_address", "nowhere"),
        ("domain", "UPPER.example"),
        ("domain", "*.example"),
        ("public_url", "example.com"),
        ("data_dir", Path("/" + "d" * 100)),
        ("hold_timeout", 0),
    ],
)
def test_wrong_settings_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**{name: value})  # pyright: ignore[reportArgumentType]
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]
