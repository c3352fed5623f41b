"""Somebody else deletes, edits or adds objects of functions: put right, and said so."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, cast

from tests.cluster.release.looking import Object
from tests.cluster.release.site import Site
from tests.cluster.release.sources import ECHO, image_archive, new
from tests.conformance.door import Door, Json, id_of, until

RIGHT_SECONDS = 30.0
BUILT_SECONDS = 90.0

# What each function of this source has one of, by driver.
OBJECTS = {
    "knative": ("services.serving.knative.dev", "secret"),
    "deployment": ("deployments.apps", "configmap", "secret", "service"),
}


async def only(site: Site, kind: str, function: Json) -> Object:
    """Return the one object of a kind that Mayfly made for a function."""
    # Knative makes plain Services of its own, which are no affair of Mayfly's.
    selector = f"{site.label},mayfly.dev/uid={function['uid']}"
    (found,) = await asyncio.to_thread(site.looker.list, kind, site.functions, selector)
    return found


def content(manifest: Object) -> Json:
    """Return what an object is for, without what the cluster keeps beside it."""
    return {key: manifest.get(key) for key in ("spec", "data", "binaryData")}


async def answers_again(door: Door, function: Json, seconds: float = RIGHT_SECONDS) -> None:
    """Wait until a function answers as before."""

    async def probe() -> bool:
        answer = await door.call(function)
        return answer.status_code == 200 and answer.text == id_of(function)

    await until(probe, seconds, what=f"{id_of(function)} answers", every=0.3)


async def told(door: Door, function: Json, *words: str) -> None:
    """Wait for a line of the platform in a function's log with these words."""

    async def probe() -> bool:
        path = f"/v1/functions/{id_of(function)}:logs"
        async with door.stream(path, tail=1000) as messages:
            lines = [m["log"] async for m in messages]
        platform = [
            line.get("text", "") for line in lines if line.get("origin") == "ORIGIN_PLATFORM"
        ]
        return any(all(word in line for word in words) for line in platform)

    what = f"{words} in the log of {id_of(function)}"
    try:
        await until(probe, RIGHT_SECONDS, what=what, every=0.3)
    except AssertionError as error:
        error.add_note(str(await door.log_lines(function)))
        raise


async def of_each_kind(site: Site, test: Callable[[str], Awaitable[None]]) -> None:
    """Do a test with each kind of object at the same time; what fails is raised together."""
    kinds = OBJECTS[site.driver]
    outcomes = await asyncio.gather(*(test(kind) for kind in kinds), return_exceptions=True)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if failed:
        raise ExceptionGroup(f"of {', '.join(kinds)}", failed)


async def test_objects_are_deleted(site: Site, door: Door) -> None:
    async def delete(kind: str) -> None:
        function = await door.ready(handler=ECHO, env={"WORD": "kept"})
        before = await only(site, kind, function)
        name = before["metadata"]["name"]
        await asyncio.to_thread(
            site.looker.kubectl, "delete", kind, name, "-n", site.functions, "--wait=false"
        )

        async def made_again() -> bool:
            found = await asyncio.to_thread(site.looker.get, kind, site.functions, name)
            return (
                found is not None
                and found["metadata"]["uid"] != before["metadata"]["uid"]
                and "deletionTimestamp" not in found["metadata"]
            )

        await until(made_again, RIGHT_SECONDS, what=f"{kind} {name} again", every=0.2)
        after = await only(site, kind, function)
        if kind in ("configmap", "secret"):
            assert content(after) == content(before)
        await answers_again(door, function)
        await told(door, function, name)

    await of_each_kind(site, delete)


# Where in an object, and what somebody writes there.
EDITS: dict[str, tuple[tuple[str, ...], object]] = {
    "services.serving.knative.dev": (
        ("metadata", "labels", "networking.knative.dev/visibility"),
        "",
    ),
    "deployments.apps": (("spec", "template", "spec", "terminationGracePeriodSeconds"), 1),
    "configmap": (("binaryData", "runtime.container.py"), "cmFpc2UgU3lzdGVtRXhpdCgpCg=="),
    "secret": (("data", "WORD"), "b3RoZXI="),
    "service": (("spec", "selector", "mayfly.dev/uid"), "another"),
}


async def test_objects_are_edited(site: Site, door: Door) -> None:
    async def edit(kind: str) -> None:
        function = await door.ready(handler=ECHO, env={"WORD": "kept"})
        before = await only(site, kind, function)
        name = before["metadata"]["name"]
        path, value = EDITS[kind]
        written: Any = value
        for key in reversed(path):
            written = {key: written}
        assert _at(before, path) != value
        await asyncio.to_thread(
            site.looker.kubectl,
            *("patch", kind, name, "-n", site.functions, "--type=merge", "-p", json.dumps(written)),
        )

        async def put_right() -> bool:
            now = await only(site, kind, function)
            return _at(now, path) == _at(before, path)

        await until(put_right, RIGHT_SECONDS, what=f"{kind} {name} as it was", every=0.2)
        await answers_again(door, function)
        await told(door, function, name)

    await of_each_kind(site, edit)


def _at(value: Object, path: tuple[str, ...]) -> object:
    found: Any = value
    for key in path:
        found = found[key]
    return cast("object", found)


async def test_an_image_is_deleted(site: Site, door: Door) -> None:
    """Removed from the registry: made again, before a node that has it not asks for it."""
    source = (
        {"handler": new(ECHO)}
        if site.driver == "knative"
        else {"archive": image_archive(site.cluster.python_image)}
    )
    function = await door.ready(**source)
    image = await asyncio.to_thread(_image, site, function["uid"])
    assert await asyncio.to_thread(site.looker.image_digest, image)
    await asyncio.to_thread(site.looker.delete_image, image)
    assert not await asyncio.to_thread(site.looker.image_digest, image)

    async def there_again() -> bool:
        now = await asyncio.to_thread(_image, site, function["uid"])
        return bool(now and await asyncio.to_thread(site.looker.image_digest, now))

    await until(there_again, BUILT_SECONDS, what="the image again", every=0.5)
    await told(door, function, "image")
    settled = await door.settled(function)
    assert (await door.call(settled)).status_code == 200


def _image(site: Site, uid: str) -> str:
    """Return the image that a function's workload names, "" where it is just made anew."""
    found = site.looker.list(
        site.workload_kind, site.functions, f"{site.label},mayfly.dev/uid={uid}"
    )
    if len(found) != 1:
        return ""
    return str(found[0]["spec"]["template"]["spec"]["containers"][0]["image"])


# What somebody may leave: with our labels, and of no row.


def _labels(site: Site, uid: str, **more: str) -> dict[str, str]:
    key, _, value = site.label.partition("=")
    return {"app.kubernetes.io/managed-by": "mayfly", key: value, "mayfly.dev/uid": uid, **more}


def _strays(site: Site) -> list[Object]:
    """Objects of every kind that a function or a build has, of functions that never were."""
    uid = secrets.token_hex(16)
    function = {
        "name": f"fn-{uid}",
        "namespace": site.functions,
        "labels": _labels(
            site, uid, **{"mayfly.dev/function": "never", "mayfly.dev/revision": "1"}
        ),
    }
    build_uid = secrets.token_hex(16)
    build = {
        "name": f"build-{build_uid}-1",
        "namespace": site.builds,
        "labels": _labels(site, build_uid, **{"mayfly.dev/build": "b-never"}),
    }
    pod = {
        "automountServiceAccountToken": False,
        "containers": [{"name": "it", "image": site.cluster.static_image, "args": ["sleep", "60"]}],
    }
    selector = {"mayfly.dev/uid": uid}
    workload = (
        {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": function,
            "spec": {"template": {"spec": {"containers": [{"image": site.cluster.static_image}]}}},
        }
        if site.driver == "knative"
        else {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": function,
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": selector},
                "template": {"metadata": {"labels": selector}, "spec": pod},
            },
        }
    )
    strays: list[Object] = [
        workload,
        {"apiVersion": "v1", "kind": "Secret", "metadata": function},
        {"apiVersion": "v1", "kind": "Pod", "metadata": build, "spec": pod},
        {"apiVersion": "v1", "kind": "Secret", "metadata": build},
    ]
    if site.driver == "deployment":
        strays += [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": function},
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": function,
                "spec": {"clusterIP": "None", "selector": selector},
            },
        ]
    return strays


async def test_what_belongs_to_nothing_is_swept(site: Site, door: Door) -> None:
    """Objects, an image and a build's context: a dry run lists them, a sweep removes them."""
    kept = await door.ready(handler=ECHO)
    strays = _strays(site)
    tag = f"b-never-{secrets.token_hex(16)}"
    image = f"{site.release.repository}:{tag}"
    looker = site.looker
    manifests = {"apiVersion": "v1", "kind": "List", "items": strays}
    try:
        await asyncio.to_thread(looker.kubectl, "create", "-f", "-", stdin=json.dumps(manifests))
        await asyncio.to_thread(looker.copy_image, site.cluster.static_image, image)
        uids = {stray["metadata"]["labels"]["mayfly.dev/uid"] for stray in strays}

        def names() -> list[str]:
            found: list[str] = []
            for stray in strays:
                group = stray["apiVersion"].rpartition("/")[0]
                kind = f"{stray['kind']}.{group}" if group else stray["kind"]
                metadata = stray["metadata"]
                if looker.get(kind, metadata["namespace"], metadata["name"]):
                    found.append(f"{stray['kind']}/{metadata['name']}")
            return found + ([tag] if looker.image_digest(image) else [])

        there = await asyncio.to_thread(names)
        assert len(there) == len(strays) + 1, there
        dry = await site.swept(door, dry_run=True)
        text = json.dumps(dry)
        assert all(uid in text for uid in uids), dry
        assert tag in text, dry
        assert not [finding for finding in dry if finding.get("removed")], dry
        assert await asyncio.to_thread(names) == there

        async def swept() -> bool:
            findings = await site.swept(door, dry_run=False)
            failed = [finding for finding in findings if finding.get("error")]
            assert not failed, failed
            return not await asyncio.to_thread(names)

        try:
            await until(swept, 2 * RIGHT_SECONDS, what="nothing stray", every=1)
        except AssertionError as error:
            error.add_note(f"left: {await asyncio.to_thread(names)}\nof {there}")
            raise
        assert await site.swept(door, dry_run=True) == []
        assert (await door.call(kept)).text == id_of(kept)
    finally:
        await asyncio.to_thread(
            looker.kubectl, "delete", "--ignore-not-found", "--wait=false", "-f", "-",
            stdin=json.dumps(manifests),
        )  # fmt: skip
