"""Requests that are refused: 400 with reason, field and fix, and nothing created."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conformance.door import Door, problem_of

HELLO = "def handler(event, ctx):\n    return 1\n"
GOOD = {"handler": HELLO, "ttl": "60s"}

BAD_BODIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown runtime": ({**GOOD, "runtime": "cobol"}, "UNKNOWN_RUNTIME", "runtime"),
    "no source": ({"ttl": "60s"}, "INVALID_SOURCE", ""),
    "empty source": ({"handler": "", "ttl": "60s"}, "INVALID_SOURCE", ""),
    "source with a zero byte": ({**GOOD, "handler": "x = 1\0"}, "INVALID_SOURCE", "handler"),
    "ttl of zero": ({**GOOD, "ttl": "0s"}, "INVALID_TTL", "ttl"),
    "ttl below zero": ({**GOOD, "ttl": "-5s"}, "INVALID_TTL", "ttl"),
    "ttl above the maximum": ({**GOOD, "ttl": "31536000s"}, "INVALID_TTL", "ttl"),
    "source over the limit": (
        {**GOOD, "handler": HELLO + "#" * (20 << 20)},
        "SOURCE_TOO_LARGE",
        "handler",
    ),
    "idle_timeout below zero": ({**GOOD, "idleTimeout": "-1s"}, "INVALID_FIELD", "idle_timeout"),
    "timeout below zero": ({**GOOD, "timeout": "-1s"}, "INVALID_FIELD", "timeout"),
    "memory below zero": (
        {**GOOD, "resources": {"memoryBytes": "-1"}},
        "INVALID_FIELD",
        "resources.memory_bytes",
    ),
    "more instances at least than at most": (
        {**GOOD, "minInstances": 3, "maxInstances": 2},
        "INVALID_FIELD",
        "min_instances",
    ),
    "concurrency below zero": ({**GOOD, "concurrency": -1}, "INVALID_FIELD", "concurrency"),
    "port that is none": (
        {"script": "# /// script\n# ///\n", "ttl": "60s", "port": 70000},
        "INVALID_FIELD",
        "port",
    ),
    "label that is too long": (
        {**GOOD, "labels": {"a": "b" * 64}},
        "INVALID_FIELD",
        "labels",
    ),
    "variable without a name": ({**GOOD, "env": {"": "x"}}, "INVALID_FIELD", "env"),
    "variable with = in its name": ({**GOOD, "env": {"A=B": "x"}}, "INVALID_FIELD", "env"),
    "variable with a zero byte": ({**GOOD, "env": {"A": "x\0y"}}, "INVALID_FIELD", "env"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
async def test_a_bad_field_is_refused_by_name(mayfly: Door, case: str) -> None:
    body, reason, field = BAD_BODIES[case]
    function_id = mayfly.new_id("bad")
    response = await mayfly.post(body, function_id=function_id)
    problem = problem_of(response)
    assert (problem.http, problem.reason) == (400, reason), problem
    assert problem.field.removeprefix("function.").startswith(field), problem
    assert problem.message, problem
    assert problem.fix, problem
    assert not await mayfly.exists(function_id)


BAD_TEXTS = {
    "not JSON": (b"{", ""),
    "cut off": (b'{"handler": "def handler', ""),
    "an array": (b"[]", ""),
    "unknown field": (b'{"handler": "x", "ttl": "60s", "colour": "red"}', "colour"),
    "wrong type": (b'{"handler": 5, "ttl": "60s"}', ""),
    "ttl without its unit": (b'{"handler": "x", "ttl": 600}', ""),
    "archive that is no base64": (b'{"archive": "***", "ttl": "60s"}', ""),
    "two sources": (b'{"handler": "x", "script": "y", "ttl": "60s"}', ""),
    "the same source twice": (b'{"handler": "x", "handler": "y", "ttl": "60s"}', ""),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
async def test_a_malformed_body_is_refused(mayfly: Door, case: str) -> None:
    body, named = BAD_TEXTS[case]
    function_id = mayfly.new_id("bad")
    response = await mayfly.http.post(
        "/v1/functions",
        params={"function_id": function_id},
        content=body,
        headers={"content-type": "application/json"},
    )
    problem = problem_of(response)
    assert problem.http == 400, problem
    assert problem.reason in {"INVALID_FIELD", "INVALID_SOURCE"}, problem
    assert problem.message, problem
    assert problem.fix, problem
    assert named in problem.message + problem.field, problem
    assert not await mayfly.exists(function_id)


@pytest.mark.parametrize(
    "function_id",
    [
        "My_Function",
        "UPPER",
        "-first",
        "last-",
        "a" * 64,
        "dot.dot",
        "_cluster",
        "a b",
        "ünïcode",
        "a/b",
    ],
)
async def test_an_id_that_is_no_dns_label_is_refused(mayfly: Door, function_id: str) -> None:
    before = {f["name"] for f in await mayfly.listed(show_ended="true")}
    response = await mayfly.http.post(
        "/v1/functions", params={"function_id": function_id}, json=GOOD
    )
    problem = problem_of(response)
    assert (problem.http, problem.reason) == (400, "INVALID_FUNCTION_ID"), problem
    assert problem.field == "function_id"
    assert problem.fix
    after = {f["name"] for f in await mayfly.listed(show_ended="true")}
    assert f"functions/{function_id}" not in after - before


@pytest.mark.parametrize("function_id", ["a", "0", "a" * 63, "9-lives"])
async def test_every_dns_label_is_taken(mayfly: Door, function_id: str) -> None:
    created = await mayfly.create(function_id=function_id, **GOOD)
    answer = await mayfly.call(created)
    assert answer.status_code == 200, answer.text


async def test_an_image_that_cannot_run_is_refused(mayfly: Door, on_cluster: bool) -> None:
    response = await mayfly.post({"image": "example/none:1", "ttl": "60s"})
    if response.status_code == 200:
        failure = (await mayfly.settled(response.json(), "FAILED"))["failure"]
        reasons = {"IMAGE_PULL_FAILED"} if on_cluster else {"SOURCE_UNSUPPORTED"}
        assert failure["reason"] in reasons, failure
        assert failure["fix"]
    else:
        problem = problem_of(response)
        assert (problem.http, problem.reason) == (400, "SOURCE_UNSUPPORTED"), problem
        assert problem.fix


async def test_query_parameters_that_nobody_knows_are_refused(mayfly: Door) -> None:
    function_id = mayfly.new_id("bad")
    response = await mayfly.http.post(
        "/v1/functions", params={"function_id": function_id, "colour": "red"}, json=GOOD
    )
    assert problem_of(response).http == 400
    assert not await mayfly.exists(function_id)


async def test_a_bad_page_token_or_filter_is_refused(mayfly: Door) -> None:
    for query, reason, field in (
        ({"page_token": "abc"}, "INVALID_PAGE_TOKEN", "page_token"),
        ({"filter": "state >"}, "INVALID_FILTER", "filter"),
        ({"filter": "colour=red"}, "INVALID_FILTER", "filter"),
        ({"filter": "state=NOWHERE"}, "INVALID_FILTER", "filter"),
        ({"page_size": "-1"}, "INVALID_FIELD", "page_size"),
    ):
        problem = problem_of(await mayfly.http.get("/v1/functions", params=query))
        assert (problem.http, problem.reason, problem.field) == (400, reason, field), query
        assert problem.fix, query


async def test_the_same_request_id_is_the_same_function(mayfly: Door) -> None:
    function_id, request_id = mayfly.new_id("once"), mayfly.new_id("wish")
    label = {"labels": {"wish": request_id}}
    first = await mayfly.post(GOOD | label, function_id=function_id, request_id=request_id)
    again = await mayfly.post(GOOD | label, function_id=function_id, request_id=request_id)
    assert first.json()["uid"] == again.json()["uid"]
    assert again.json()["expireTime"] == first.json()["expireTime"]
    assert len(await mayfly.listed(filter=f"labels.wish={request_id}", show_ended="true")) == 1


async def test_the_same_request_id_without_an_id_is_the_same_function(mayfly: Door) -> None:
    request_id = mayfly.new_id("wish")
    first = await mayfly.post(GOOD, function_id="", request_id=request_id)
    again = await mayfly.post(GOOD, function_id="", request_id=request_id)
    assert first.json()["name"] == again.json()["name"]


async def test_the_same_request_id_all_at_once_is_one_function(mayfly: Door) -> None:
    request_id = mayfly.new_id("wish")
    body = GOOD | {"labels": {"wish": request_id}}
    responses = await asyncio.gather(
        *(mayfly.post(body, function_id="", request_id=request_id) for _ in range(8))
    )
    assert {r.status_code for r in responses} == {200}, [r.text for r in responses]
    assert len({r.json()["uid"] for r in responses}) == 1
    assert len(await mayfly.listed(filter=f"labels.wish={request_id}", show_ended="true")) == 1


async def test_a_request_id_that_is_too_long_is_refused(mayfly: Door) -> None:
    problem = problem_of(await mayfly.post(GOOD, request_id="r" * 129))
    assert (problem.http, problem.reason, problem.field) == (400, "INVALID_FIELD", "request_id")


async def test_a_taken_id_already_exists(mayfly: Door) -> None:
    created = await mayfly.create(**GOOD)
    response = await mayfly.post(GOOD, function_id=created["name"].removeprefix("functions/"))
    problem = problem_of(response)
    assert (problem.http, problem.reason) == (409, "FUNCTION_EXISTS"), problem
    assert problem.field == "function_id"
    assert problem.fix
    assert (await mayfly.get(created))["uid"] == created["uid"]


async def test_one_wish_for_a_taken_id_all_at_once_wins(mayfly: Door) -> None:
    function_id = mayfly.new_id("race")
    responses = await asyncio.gather(
        *(
            mayfly.post(GOOD, function_id=function_id, request_id=f"{function_id}-{i}")
            for i in range(6)
        )
    )
    assert sorted(r.status_code for r in responses) == [200, 409, 409, 409, 409, 409]


async def test_updates_are_checked_like_creations(mayfly: Door) -> None:
    function = await mayfly.ready(**GOOD)
    path = f"/v1/{function['name']}"
    for body, mask, field in (
        ({"timeout": "-1s"}, "timeout", "timeout"),
        ({"concurrency": -1}, "concurrency", "concurrency"),
        ({"ttl": "10s"}, "ttl", "update_mask"),
        ({"labels": {"a": "b"}}, "colour", "update_mask"),
        ({"handler": ""}, "handler", ""),
    ):
        response = await mayfly.http.patch(path, params={"update_mask": mask}, json=body)
        problem = problem_of(response)
        assert problem.http == 400, (body, mask, problem)
        assert problem.reason in {"INVALID_FIELD", "INVALID_SOURCE"}, (body, mask, problem)
        assert problem.field.removeprefix("function.").startswith(field), (body, mask, problem)
        assert problem.fix, (body, mask, problem)
    found = await mayfly.get(function)
    assert (found["revision"], found["updateTime"]) == (1, found["updateTime"])
    assert (await mayfly.call(function)).status_code == 200


async def test_a_renewal_is_checked_like_a_creation(mayfly: Door) -> None:
    function = await mayfly.create(**GOOD)
    for ttl in ("0s", "-1s", "31536000s"):
        problem = problem_of(await mayfly.renew(function, ttl))
        assert (problem.http, problem.reason, problem.field) == (400, "INVALID_TTL", "ttl"), ttl
        assert problem.fix
    assert (await mayfly.get(function))["expireTime"] == function["expireTime"]
