"""FunctionService as a person with curl uses it."""

from __future__ import annotations

import asyncio

from tests.conformance.door import Door, example, id_of, problem_of, state_of, time_of

HELLO = "def handler(event, ctx):\n    return {'hi': event['query'].get('name')}\n"


async def test_create_answers_at_once_with_the_url_and_the_lease(mayfly: Door) -> None:
    function_id = mayfly.new_id("rest")
    created = await mayfly.create(function_id=function_id, handler=HELLO, ttl="600s")
    assert created["name"] == f"functions/{function_id}"
    assert created["url"].startswith("http")
    assert function_id in created["url"]
    assert state_of(created) in {"PENDING", "BUILDING", "DEPLOYING", "READY"}
    assert created["ttl"] == "600s"
    lease = time_of(created["expireTime"]) - time_of(created["createTime"])
    assert abs(lease - 600) < 0.01
    assert len(created["uid"]) >= 8
    assert len(created["traceId"]) == 32
    assert "handler" not in created
    answer = await mayfly.call(created, "?name=you")
    assert (answer.status_code, answer.json()) == (200, {"hi": "you"})


async def test_the_url_that_is_returned_is_the_one_that_answers(mayfly: Door) -> None:
    created = await mayfly.create(handler=HELLO)
    answer = await mayfly.http.get(created["url"], params={"name": "x"})
    assert answer.json() == {"hi": "x"}


async def test_an_id_is_made_up_when_none_is_given(mayfly: Door) -> None:
    first, second = [await mayfly.create(function_id="", handler=HELLO) for _ in range(2)]
    assert id_of(first) != id_of(second)
    assert (await mayfly.call(second)).status_code == 200


async def test_defaults_are_filled_in(mayfly: Door) -> None:
    response = await mayfly.post({"handler": HELLO})
    created = response.json()
    assert created["runtime"] == "python"
    assert created["ttl"] == "600s"
    assert created["timeout"] == "60s"
    assert created["maxInstances"] == 4
    assert created["concurrency"] == 16


async def test_get_shows_what_was_created(mayfly: Door) -> None:
    created = await mayfly.ready(
        handler=HELLO, env={"GREETING": "hej"}, labels={"team": "x"}, timeout="5s", concurrency=3
    )
    found = await mayfly.get(created)
    assert found["env"] == {"GREETING": "hej"}
    assert found["labels"] == {"team": "x"}
    assert found["timeout"] == "5s"
    assert found["concurrency"] == 3
    assert found["revision"] == 1
    assert found["build"].startswith("builds/")
    assert state_of(found) in {"READY", "IDLE"}


async def test_functions_get_their_environment_variables(mayfly: Door) -> None:
    code = "import os\ndef handler(event, ctx):\n    return os.environ['GREETING']\n"
    function = await mayfly.create(handler=code, env={"GREETING": "hej då"})
    assert (await mayfly.call(function)).text.strip('"') == "hej då"


async def test_list_is_newest_first_paged_and_filtered(mayfly: Door) -> None:
    label = mayfly.new_id("label")
    made = [await mayfly.create(handler=HELLO, labels={"batch": label}) for _ in range(5)]
    wanted = [f["name"] for f in reversed(made)]
    where = {"filter": f"labels.batch={label}"}
    names: list[str] = []
    token = ""
    for _ in range(3):
        page = await mayfly.http.get(
            "/v1/functions", params={**where, "page_size": 2, "page_token": token}
        )
        assert page.status_code == 200, page.text
        names += [f["name"] for f in page.json()["functions"]]
        token = page.json().get("nextPageToken", "")
    assert (names, token) == (wanted, "")
    await asyncio.gather(*(mayfly.settled(f, "READY") for f in made))
    ready = await mayfly.listed(filter=f"labels.batch={label} AND runtime=python")
    assert [f["name"] for f in ready] == wanted
    assert await mayfly.listed(filter=f"labels.batch={label} AND state=FAILED") == []


async def test_ended_functions_are_listed_only_when_asked_for(mayfly: Door) -> None:
    label = mayfly.new_id("label")
    function = await mayfly.ready(handler=HELLO, labels={"batch": label})
    await mayfly.delete(function)
    where = f"labels.batch={label}"
    assert await mayfly.listed(filter=where) == []
    ended = await mayfly.listed(filter=where, show_ended="true")
    assert [f["name"] for f in ended] == [function["name"]]


async def test_runtimes_say_what_can_be_used_here(mayfly: Door) -> None:
    runtimes = {r["name"]: r for r in (await mayfly.http.get("/v1/runtimes")).json()["runtimes"]}
    assert runtimes["python"]["available"]
    assert runtimes["python"]["versions"]
    assert "handler" in runtimes["python"]["sources"]
    assert "def handler" in runtimes["python"]["example"]
    go = runtimes["go"]
    assert go.get("available") or go["unavailableReason"]


async def test_the_example_of_each_available_runtime_works(mayfly: Door) -> None:
    runtimes = (await mayfly.http.get("/v1/runtimes")).json()["runtimes"]
    for runtime in (r for r in runtimes if r.get("available")):
        function = await mayfly.create(runtime=runtime["name"], handler=runtime["example"])
        answer = await mayfly.call(function)
        assert answer.status_code == 200, (runtime["name"], answer.text)


async def test_the_build_can_be_read_and_watched(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)
    build = (await mayfly.http.get(f"/v1/{function['build']}")).json()
    assert build["state"].endswith("SUCCEEDED")
    async with mayfly.stream(f"/v1/{function['build']}:watch") as messages:
        seen = [m async for m in messages]
    assert seen[-1]["ended"]["name"] == function["build"]
    assert [int(m["sequence"]) for m in seen] == list(range(1, len(seen) + 1))
    builds = (await mayfly.http.get("/v1/builds", params={"page_size": 1000})).json()["builds"]
    assert function["build"] in {b["name"] for b in builds}


async def test_the_same_source_twice_is_one_build(mayfly: Door) -> None:
    first = await mayfly.ready(handler=HELLO + "# twice\n", minInstances=1)
    second = await mayfly.ready(handler=HELLO + "# twice\n")
    assert first["build"] == second["build"]
    await mayfly.delete(first)
    await mayfly.receipt(first)
    assert (await mayfly.call(second)).status_code == 200


async def test_openapi_describes_the_methods(mayfly: Door) -> None:
    response = await mayfly.http.get("/openapi.json")
    assert response.status_code == 200
    document = response.json()
    assert document["openapi"].startswith("3.")
    paths = document["paths"]
    assert {"get", "post"} <= set(paths["/v1/functions"])
    assert any(path.endswith(":renew") for path in paths)
    assert not any("Reclaim" in path or "SyncRoutes" in path for path in paths)
    assert "Function" in " ".join(document["components"]["schemas"])


async def test_health_and_index(mayfly: Door) -> None:
    assert (await mayfly.http.get("/healthz")).status_code == 200
    assert (await mayfly.http.get("/")).status_code == 200


async def test_unknown_paths_are_404_in_json(mayfly: Door) -> None:
    for path in ("/nope", "/v1/nope", "/v2/functions", "/f/", "/f"):
        response = await mayfly.http.get(path)
        assert response.status_code == 404, (path, response.status_code, response.text)
        assert problem_of(response).message, path


async def test_unknown_names_are_not_found(mayfly: Door) -> None:
    missing = mayfly.new_id("missing")
    v1 = "/v1/functions/" + missing
    for method, path, body in (
        ("GET", v1, None),
        ("DELETE", v1, None),
        ("PATCH", v1, {"labels": {"a": "b"}}),
        ("POST", v1 + ":renew", {}),
        ("GET", v1 + ":trace", None),
        ("GET", v1 + ":watch", None),
        ("GET", v1 + ":logs", None),
        ("GET", "/v1/receipts/" + missing, None),
        ("GET", "/v1/builds/" + missing, None),
    ):
        response = await mayfly.http.request(method, path, json=body)
        assert response.status_code == 404, (method, path, response.status_code, response.text)
        problem = problem_of(response)
        assert problem.reason == "NOT_FOUND", (method, path, problem)


async def test_answers_are_json_for_browsers_too(mayfly: Door) -> None:
    response = await mayfly.http.get("/f/" + mayfly.new_id("no"), headers={"accept": "text/html"})
    assert problem_of(response).reason == "NOT_FOUND"


async def test_a_deleted_id_can_be_used_again_at_once(mayfly: Door) -> None:
    function_id = mayfly.new_id("again")
    first = await mayfly.ready(function_id=function_id, handler="def handler(e, c): return 'one'")
    await mayfly.delete(first)
    second = await mayfly.create(function_id=function_id, handler="def handler(e, c): return 'two'")
    assert second["uid"] != first["uid"]
    assert (await mayfly.call(second)).text.strip('"') == "two"
    await mayfly.receipt(first)
    assert (await mayfly.call(second)).text.strip('"') == "two"
    assert (await mayfly.get(function_id))["uid"] == second["uid"]


async def test_hello_of_the_examples(mayfly: Door) -> None:
    function = await mayfly.create(handler=example("hello.py"))
    answer = await mayfly.call(function, "/some/path?name=you")
    assert answer.json() == {"hello": "you", "function": id_of(function), "path": "/some/path"}
