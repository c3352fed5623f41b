"""The builder's service with the backends of a cluster: chosen, dispatched, reclaimed."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from mayfly.v1.build_pb2 import (
    Artefact,
    Build,
    FindLostImagesRequest,
    GetBuildRequest,
    WatchBuildRequest,
)
from mayfly.v1.source_pb2 import Stage

from libs.blobs import Bucket, Location
from services.builder.backends.registries import Registries
from services.builder.config import Settings
from tests.builder.conftest import HANDLER, Replica, data_dir, index, running, settings
from tests.builder.index import Index
from tests.builder.test_builds import refusal, release, tar_of
from tests.builder.test_reclaimer import resources
from tests.cluster.conftest import Cluster

__all__ = ["data_dir", "index", "settings"]


@pytest.fixture
def of_cluster(
    cluster: Cluster, namespace: str, settings: Callable[..., Settings]
) -> Callable[..., Settings]:
    """Make settings of a builder whose images are in a repository of the test's own."""
    prefix = f"f-{secrets.token_hex(4)}"

    def make(**given: object) -> Settings:
        defaults: dict[str, object] = {
            "build_backends": "layers,kaniko",
            "kubeconfig": cluster.kubeconfig,
            "registry": f"{cluster.registry}/{prefix}",
            "registry_insecure": True,
            "base_image": cluster.python_image,
            "kaniko_image": cluster.kaniko_image,
            "builds_namespace": namespace,
            "s3_bucket": prefix,
            "s3_endpoint_url": cluster.s3_endpoint,
            "s3_region": cluster.s3_region,
        }
        return settings(**(defaults | given))

    return make


@pytest_asyncio.fixture
async def bucket(of_cluster: Callable[..., Settings]) -> AsyncIterator[Bucket]:
    """The bucket that those settings name."""
    chosen = of_cluster()
    location = Location(
        bucket=chosen.s3_bucket,
        endpoint_url=chosen.s3_endpoint_url,
        region=chosen.s3_region,
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    )
    async with Bucket(location) as made:
        await made.create()
        yield made
        assert [blob.key async for blob in made.list()] == []
        await made.drop()


@pytest_asyncio.fixture
async def replica(of_cluster: Callable[..., Settings], bucket: Bucket) -> AsyncIterator[Replica]:
    """A builder of images."""
    chosen = of_cluster()
    async with running(chosen) as one:
        yield one
    # Shared layers stay for their retention.
    async with AsyncExitStack() as stack:
        registries = Registries(chosen.registry, insecure=True, auth=None, stack=stack)
        shared, _ = registries.repository(f"{chosen.registry}/environments:any")
        for tag in await shared.tags():
            digest = await shared.manifest_digest(tag)
            assert digest
            await shared.delete_manifest(digest)


async def ended(replica: Replica, build: Build) -> Build:
    """Return a build as its end is told."""
    stream = replica.builds.WatchBuild(WatchBuildRequest(name=build.name))
    return [event async for event in stream][-1].ended


async def test_an_image_is_made_found_and_removed(index: Index, replica: Replica) -> None:
    index.add("alpha")
    source = f'# /// script\n# dependencies = ["alpha"]\n# ///\n{HANDLER}'
    build = await ended(replica, await replica.create(handler=source, uid="a"))
    assert build.state == Build.STATE_SUCCEEDED, build.failure
    repository = replica.settings.functions_repository
    assert build.artefact.image.startswith(f"{repository}@sha256:")
    assert (build.artefact.directory, build.artefact.bundle) == ("", b"")

    again = await replica.create(handler=source, uid="b")
    assert (again.name, again.artefact.image) == (build.name, build.artefact.image)
    found, looked_at = await resources(replica)
    assert sorted((r.type, r.orphan) for r in found) == [("environment", False), ("image", False)]
    assert looked_at.count("images (1)") == 1

    kept = await release(replica, "a")
    assert list(kept.removed) == []
    gone = await release(replica, "b")
    assert list(gone.removed) == [f"image {build.name.removeprefix('builds/')[:6]}"]
    assert (await refusal(replica.builds.GetBuild(GetBuildRequest(name=build.name)))).reason == 8
    found, _ = await resources(replica)
    assert [r.type for r in found] == ["environment"]


async def lost(replica: Replica, *builds: Build) -> list[str]:
    """Return the names of builds whose images are gone."""
    request = FindLostImagesRequest(names=[build.name for build in builds])
    return list((await replica.builds.FindLostImages(request)).lost)


async def test_an_image_that_is_gone_is_found_and_made_again(replica: Replica) -> None:
    first = await replica.create(handler=HANDLER, uid="a")
    other = await replica.create(handler=f"{HANDLER}# another\n", uid="a")
    assert await lost(replica, first, other, Build(name="builds/none")) == []
    async with AsyncExitStack() as stack:
        chosen = replica.settings
        registries = Registries(chosen.registry, insecure=True, auth=None, stack=stack)
        await registries.functions().delete_manifest(first.artefact.image.partition("@")[2])
    assert await lost(replica, first, other) == [first.name]
    second = await replica.create(handler=HANDLER, uid="b")
    assert second.state == Build.STATE_SUCCEEDED, second.failure
    assert await lost(replica, first, other) == []
    assert second.artefact.image == first.artefact.image
    for uid in ("a", "b"):
        await release(replica, uid)


async def test_an_archive_with_a_dockerfile_goes_on_to_kaniko(
    cluster: Cluster, replica: Replica
) -> None:
    files = {"Dockerfile": f"FROM {cluster.static_image}\nCOPY note /note\n", "note": "hello\n"}
    build = await ended(replica, await replica.create(archive=tar_of(files), uid="a"))
    assert build.state == Build.STATE_SUCCEEDED, build.failure
    assert build.artefact.kind == Artefact.KIND_IMAGE
    assert not any(step.failed for step in build.steps)
    await release(replica, "a")
    assert (await resources(replica))[0] == []


async def test_a_given_image_is_named_by_its_digest_and_stays(
    cluster: Cluster, replica: Replica
) -> None:
    build = await replica.create(image=cluster.static_image, uid="a")
    name = cluster.static_image.rpartition(":")[0]
    assert build.artefact.kind == Artefact.KIND_IMAGE
    assert build.artefact.image.startswith(f"{name}@sha256:")
    assert list((await release(replica, "a")).removed) == []
    again = await replica.create(image=build.artefact.image, uid="b")
    assert again.artefact.image == build.artefact.image
    await release(replica, "b")


async def test_what_is_away_at_the_start_is_told_in_the_build(
    of_cluster: Callable[..., Settings], bucket: Bucket
) -> None:
    away = of_cluster(
        registry="127.0.0.1:9/x", base_image="127.0.0.1:9/python:3", base_python="3.13",
        build_timeout=8,
    )  # fmt: skip
    async with running(away) as replica:
        build = await ended(replica, await replica.create(handler=HANDLER, uid="a"))
        assert build.failure.reason == "REGISTRY_UNREACHABLE", build
        assert build.failure.fix


async def test_a_bucket_that_is_away_is_told_before_the_time_is_over(
    cluster: Cluster, of_cluster: Callable[..., Settings]
) -> None:
    away = of_cluster(s3_endpoint_url="http://127.0.0.1:9", build_timeout=9)
    async with running(away) as replica:
        files = {"Dockerfile": f"FROM {cluster.static_image}\nRUN true\n"}
        build = await ended(replica, await replica.create(archive=tar_of(files), uid="a"))
        assert build.failure.reason == "STORAGE_UNREACHABLE", build.failure
        assert Stage.Name(build.failure.stage) == "STAGE_BUILD"
        assert "127.0.0.1:9" in build.failure.message
