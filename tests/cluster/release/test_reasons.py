"""What the cluster refuses: FAILED with that reason and what to change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from tests.cluster.release.load import Load
from tests.cluster.release.looking import Object
from tests.cluster.release.site import Site
from tests.cluster.release.sources import ECHO, new
from tests.conformance.door import Door, Json, id_of

QUOTA = "test-full"


def assert_told(failure: Json, reason: str, *words: str) -> None:
    """Check that a failure of the deploy has a reason, what it is about, and what to do."""
    assert (failure["stage"], failure["reason"]) == ("STAGE_DEPLOY", reason), failure
    assert all(word in failure["message"] for word in words), failure
    assert failure["fix"], failure


@pytest.mark.parametrize("what", [f"@sha256:{'0' * 64}", ":never"], ids=["digest", "tag"])
async def test_an_image_that_cannot_be_pulled(site: Site, door: Door, what: str) -> None:
    image = f"{site.registry_address}/{site.namespace}/nothing{what}"
    failure = await door.failed(image=image)
    assert_told(failure, "IMAGE_PULL_FAILED", image)


@asynccontextmanager
async def full(site: Site) -> AsyncGenerator[None]:
    """The functions' namespace takes no more than one pod."""
    quota: Object = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": QUOTA, "namespace": site.functions},
        "spec": {"hard": {"pods": "1"}},
    }
    looker = site.looker
    await asyncio.to_thread(looker.kubectl, "apply", "-f", "-", stdin=json.dumps(quota))
    try:
        await asyncio.to_thread(
            looker.kubectl, "wait", f"resourcequota/{QUOTA}", "-n", site.functions,
            "--for=jsonpath={.status.hard.pods}", "--timeout=20s",
        )  # fmt: skip
        yield
    finally:
        await asyncio.to_thread(
            looker.kubectl, "delete", "resourcequota", QUOTA, "-n", site.functions
        )


async def test_the_quota_is_used_up(site: Site, door: Door) -> None:
    steady = await door.ready(handler=ECHO)
    # Called all the time, so that its pod stays and is the one.
    async with Load({f"{door.url}/f/{id_of(steady)}": id_of(steady)}) as tally, full(site):
        failure = await door.failed(handler=new(ECHO))
        assert_told(failure, "CLUSTER_QUOTA_EXCEEDED", QUOTA)
    tally.check()
    after = await door.ready(handler=new(ECHO))
    assert (await door.call(after)).text == id_of(after)


@asynccontextmanager
async def without(site: Site, verbs: set[str], resource: str) -> AsyncGenerator[None]:
    """The deployer's account may not do something to functions' objects."""
    looker = site.looker
    name = site.parts.deployment("deployer")
    role = await asyncio.to_thread(looker.get, "role", site.functions, name)
    assert role is not None
    changed = json.loads(json.dumps(role))
    touched = 0
    for rule in changed["rules"]:
        if resource in rule["resources"]:
            touched += len(verbs & set(rule["verbs"]))
            rule["verbs"] = sorted(set(rule["verbs"]) - verbs)
    assert touched, (verbs, resource, role["rules"])

    async def put(rules: list[Json]) -> None:
        await asyncio.to_thread(
            looker.kubectl, "patch", "role", name, "-n", site.functions, "--type=merge", "-p",
            json.dumps({"rules": rules}),
        )  # fmt: skip

    await put(changed["rules"])
    try:
        yield
    finally:
        await put(role["rules"])


async def test_a_verb_is_missing(site: Site, door: Door) -> None:
    steady = await door.ready(handler=ECHO)
    resource = "services" if site.driver == "knative" else "deployments"
    async with without(site, {"create", "patch"}, resource):
        failure = await door.failed(handler=new(ECHO))
        assert_told(failure, "CLUSTER_FORBIDDEN", resource)
        assert "Role" in failure["fix"], failure
        assert resource in failure["fix"], failure
        assert (await door.call(steady)).text == id_of(steady)
    after = await door.ready(handler=new(ECHO))
    assert (await door.call(after)).text == id_of(after)
