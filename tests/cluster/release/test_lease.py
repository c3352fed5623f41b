"""A function's whole life on a cluster: submitted, called, expired, accounted for."""

from __future__ import annotations

import time

import httpx

from tests.cluster.release.installed import Release, run

HANDLER = 'def handler(event, ctx):\n    return {"hello": event["query"].get("name")}\n'
READY_SECONDS = 90
RECEIPT_SECONDS = 60


def test_a_function_answers_until_its_lease_ends(release: Release) -> None:
    with httpx.Client(base_url=release.url, timeout=READY_SECONDS) as client:
        created = client.post(
            "/v1/functions",
            params={"function_id": "lease"},
            json={"runtime": "python", "handler": HANDLER, "ttl": "25s"},
        )
        assert created.status_code == 200, created.text
        url = created.json()["url"]
        assert url.startswith(release.url)
        # It comes before the function is ready, and is held until it is.
        answer = client.get(url, params={"name": "you"})
        assert (answer.status_code, answer.json()) == (200, {"hello": "you"}), answer.text
        assert release.function_objects()

        deadline = time.monotonic() + READY_SECONDS
        while (ended := client.get(url)).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ended.status_code in (404, 410), ended.text
        deadline = time.monotonic() + RECEIPT_SECONDS
        while (receipt := client.get("/v1/receipts/lease")).status_code != 200:
            assert time.monotonic() < deadline, receipt.text
            time.sleep(0.2)
    release.empty()


def test_the_release_passes_its_own_test(release: Release) -> None:
    run("helm", "test", "mayfly", "-n", release.namespace, "--timeout", "240s")
