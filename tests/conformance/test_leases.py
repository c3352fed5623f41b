"""Leases: they end when they say, are renewed until then, and nothing answers afterwards."""

from __future__ import annotations

import asyncio
import json
import time

from tests.conformance.door import (
    ENDED,
    Door,
    Json,
    id_of,
    problem_of,
    state_of,
    time_of,
    until,
)

HELLO = "def handler(event, ctx):\n    return 'here'\n"
# The design's bound on how late a refusal may be. Clocks of client and server must agree as well.
LATENESS = 0.25


BRIEF = 3


async def brief(mayfly: Door) -> Json:
    """A function that answers and ends in `BRIEF` seconds, however long its start has taken."""
    function = await mayfly.ready(handler=HELLO)
    renewed = await mayfly.renew(function, f"{BRIEF}s")
    assert renewed.status_code == 200, renewed.text
    return renewed.json()


async def first_refusal(mayfly: Door, function: Json, seconds: float) -> float:
    """Call a function until it answers 404; returns when that request was sent (Unix seconds)."""

    async def probe() -> float | None:
        sent = time.time()
        answer = await mayfly.call(function)
        if answer.status_code == 404:
            assert problem_of(answer).message
            return sent
        assert answer.status_code == 200, answer.text
        return None

    return await until(probe, seconds, what="404 after the deadline", every=0.01)


async def test_it_answers_until_its_deadline_and_not_after(mayfly: Door) -> None:
    function = await brief(mayfly)
    deadline = time_of(function["expireTime"])
    refused = await first_refusal(mayfly, function, BRIEF + 3)
    assert -0.05 <= refused - deadline <= LATENESS
    ended = await mayfly.settled(function)
    assert state_of(ended) in ENDED
    assert ended["endReason"] == "END_REASON_TTL"


async def test_a_function_that_nobody_calls_ends_as_well(mayfly: Door) -> None:
    function = await mayfly.create(handler=HELLO, ttl="1s")
    receipt = await mayfly.receipt(function, 8)
    assert receipt["endReason"] == "ttl"
    assert problem_of(await mayfly.call(function)).http == 404


async def test_a_lease_can_end_during_the_build(mayfly: Door) -> None:
    function = await mayfly.create(handler="import time\ntime.sleep(30)\n" + HELLO, ttl="1s")
    await mayfly.verified_receipt(function)
    assert state_of(await mayfly.get(function)) == "RECLAIMED"


async def test_it_ends_when_it_is_idle(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO, ttl="300s", idleTimeout="2s")
    assert (await mayfly.call(function)).status_code == 200

    async def ended() -> Json | None:
        found = await mayfly.get(function)
        return found if state_of(found) in ENDED else None

    found = await until(ended, 20, what="the idle deadline", every=0.1)
    assert found["endReason"] == "END_REASON_IDLE"
    assert problem_of(await mayfly.call(function)).http == 404
    assert (await mayfly.receipt(function))["endReason"] == "idle"


async def test_use_keeps_it_from_being_idle(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO, ttl="300s", idleTimeout="2s")
    stop = time.monotonic() + 6
    while time.monotonic() < stop:
        answer = await mayfly.call(function)
        assert answer.status_code == 200, answer.text
        await asyncio.sleep(0.5)
    assert state_of(await mayfly.get(function)) in {"READY", "IDLE"}


async def test_the_last_use_is_shown(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)
    assert not function.get("lastUseTime")
    called = time.time()
    await mayfly.call(function)

    async def probe() -> str | None:
        return (await mayfly.get(function)).get("lastUseTime")

    shown = await until(probe, 8, what="last_use_time", every=0.1)
    assert abs(time_of(shown) - called) < 2.5


async def test_a_renewal_moves_the_deadline(mayfly: Door) -> None:
    function = await brief(mayfly)
    before = time.time()
    renewed = (await mayfly.renew(function, "60s")).json()
    assert abs(time_of(renewed["expireTime"]) - before - 60) < 2
    past = time_of(function["expireTime"]) + 1
    while time.time() < past:
        answer = await mayfly.call(function)
        assert answer.status_code == 200, answer.text
        await asyncio.sleep(0.1)
    assert state_of(await mayfly.get(function)) in {"READY", "IDLE"}


async def test_a_renewal_may_shorten_the_lease(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO, ttl="300s")
    renewed = (await mayfly.renew(function, "2s")).json()
    refused = await first_refusal(mayfly, function, 6)
    assert -0.05 <= refused - time_of(renewed["expireTime"]) <= LATENESS


async def test_a_renewal_without_ttl_is_the_same_lease_again(mayfly: Door) -> None:
    function = await mayfly.create(handler=HELLO, ttl="120s")
    before = time.time()
    response = await mayfly.renew(function)
    assert response.status_code == 200, response.text
    assert abs(time_of(response.json()["expireTime"]) - before - 120) < 2


async def test_what_has_ended_cannot_be_renewed_or_changed(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)
    await mayfly.delete(function)
    for response in (
        await mayfly.renew(function, "60s"),
        await mayfly.update(function, labels={"a": "b"}),
    ):
        problem = problem_of(response)
        assert (problem.http, problem.reason) == (400, "FUNCTION_ENDED"), response.text
        assert problem.fix
    assert problem_of(await mayfly.call(function)).http == 404


async def test_a_deleted_function_answers_no_more_when_delete_returns(mayfly: Door) -> None:
    for _ in range(5):
        function = await mayfly.ready(handler=HELLO)
        assert (await mayfly.call(function)).status_code == 200
        deleted = await mayfly.delete(function)
        answer = await mayfly.call(function)
        assert problem_of(answer).http == 404, answer.text
        assert state_of(deleted) in ENDED
        assert deleted["endReason"] == "END_REASON_DELETED"


async def test_deleting_twice_is_no_error(mayfly: Door) -> None:
    function = await mayfly.create(handler=HELLO)
    first = await mayfly.delete(function)
    again = await mayfly.delete(function)
    assert again["uid"] == first["uid"]
    assert again["endReason"] == "END_REASON_DELETED"


async def test_the_receipt_says_what_was_removed_and_looked_at(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)
    assert (await mayfly.call(function)).status_code == 200
    await mayfly.delete(function)
    receipt = await mayfly.verified_receipt(function)
    assert receipt["name"] == f"receipts/{id_of(function)}"
    assert receipt["resource"] == function["name"]
    assert receipt["uid"] == function["uid"]
    assert receipt["endReason"] == "deleted"
    assert not receipt.get("residue")
    assert receipt["removed"]
    assert all(r["type"] and r["id"] for r in receipt["removed"])
    assert receipt["lookedAt"]
    assert receipt["traceId"] == function["traceId"]
    assert time_of(receipt["reclaimTime"]) >= time_of(receipt["expireTime"])
    tombstone = await mayfly.get(function)
    assert state_of(tombstone) == "RECLAIMED"
    assert tombstone["reclaimTime"]


async def test_receipts_are_listed_newest_first(mayfly: Door) -> None:
    made = [await mayfly.ready(handler=HELLO, minInstances=1) for _ in range(3)]
    for function in made:
        await mayfly.delete(function)
        await mayfly.receipt(function)
    names: list[str] = []
    token = ""
    wanted = [f"receipts/{id_of(f)}" for f in reversed(made)]
    while not set(wanted) <= set(names):
        page = await mayfly.http.get("/v1/receipts", params={"page_size": 2, "page_token": token})
        names += [r["name"] for r in page.json()["receipts"]]
        token = page.json().get("nextPageToken", "")
        assert token or set(wanted) <= set(names), (wanted, names)
    assert [n for n in names if n in wanted] == wanted


async def test_many_that_end_at_once_are_all_reclaimed(mayfly: Door, on_cluster: bool) -> None:
    made = await asyncio.gather(*(mayfly.create(handler=HELLO, ttl="4s") for _ in range(25)))
    # A node ends its pods one after the other, and has just begun to start them.
    seconds = 90 if on_cluster else 20
    await asyncio.gather(*(mayfly.verified_receipt(f, seconds) for f in made))


async def test_the_janitor_knows_how_far_it_is_behind(mayfly: Door) -> None:
    await mayfly.ready(handler=HELLO)

    async def probe() -> Json | None:
        status = (await mayfly.http.get("/v1/janitor:status")).json()
        return status if status.get("deadlines") and status.get("owners") else None

    status = await until(probe, 5, what="a deadline in the janitor's status")
    assert "deployer" in " ".join(status["owners"])
    assert status["nextDeadline"]


async def test_a_dry_sweep_of_a_clean_world_finds_nothing_of_ours(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)
    messages: list[Json] = []
    async with mayfly.http.stream("POST", "/v1/janitor:sweep", json={"dryRun": True}) as response:
        assert response.status_code == 200
        text = (await response.aread()).decode()
    for line in text.splitlines():
        if body := line.removeprefix("data:").strip():
            messages.append(json.loads(body))
    summary = messages[-1]["summary"]
    assert summary["lookedAt"]
    assert not summary.get("unreachable"), summary
    assert not any(
        m.get("finding", {}).get("resource", {}).get("uid") == function["uid"] for m in messages
    )
    assert (await mayfly.call(function)).status_code == 200
