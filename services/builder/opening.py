"""The backends that the settings name, put together.

Clients of clusters, registries and storages take seconds and 100 MB to import: what needs them is
imported where it is wanted, by `_open_*`. Nothing that they talk to has to answer yet.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

import runtimes
from libs.rpc.process import StartError
from services.builder.backends.base import Backend
from services.builder.backends.bundle.backend import BundleBackend
from services.builder.backends.environment.backend import PLATFORM, EnvironmentBackend
from services.builder.backends.environment.environments import Environments
from services.builder.backends.environment.go import Go
from services.builder.backends.environment.uv import Target
from services.builder.backends.image import GivenImages
from services.builder.backends.local import Local
from services.builder.choice import Choice
from services.builder.config import Settings
from services.builder.directories import remove
from services.builder.failures import BuildFailed
from services.builder.parts import Parts

if TYPE_CHECKING:
    from services.builder.backends.registries import Registries

log = structlog.get_logger()

_RUNTIMES = Path(next(iter(runtimes.__path__)))
_IMAGES = frozenset({"layers", "kaniko"})
_BASE_SECONDS = 120.0


@dataclass(frozen=True)
class _Cluster:
    """What backends of a cluster need: the Python that functions run in, and registries."""

    target: Target
    registries: Registries


async def open_backends(settings: Settings, parts: Parts, stack: AsyncExitStack) -> Choice:
    """Put the backends together; `stack` ends what they have open. Raises `StartError`."""
    local = Local(parts.directories)
    if not settings.on_cluster:
        directories = parts.directories
        return Choice(
            [_environment(settings, parts)],
            None,
            local,
            lambda digest, uid: str(directories.environment(digest, uid)),
        )

    def place_of(digest: str, uid: str) -> str:
        return f"{settings.registry}/environments:{digest}-{uid}"

    cluster = await _cluster(settings, parts, stack)
    backends = [
        await _open(name, settings, parts, cluster, stack) for name in settings.build_backends
    ]
    if _IMAGES.isdisjoint(settings.build_backends):
        return Choice(backends, None, local, place_of)
    registries = cluster.registries
    given = GivenImages(settings.functions_repository, registries.may_ask(), registries.digest)
    return Choice(backends, given, local, place_of)


async def _cluster(settings: Settings, parts: Parts, stack: AsyncExitStack) -> _Cluster:
    from services.builder.backends.registries import Registries

    auth = Path(settings.registry_auth) if settings.registry_auth else None
    registries = Registries(
        settings.registry, insecure=settings.registry_insecure, auth=auth, stack=stack
    )
    version = settings.base_python or await _base_python(settings, parts, registries)
    return _Cluster(Target(version, settings.base_platform), registries)


async def _base_python(settings: Settings, parts: Parts, registries: Registries) -> str:
    """The Python of the base image, looked for in it; its registry is awaited for a while."""
    from libs.registry import RegistryError, Unreachable, parse
    from services.builder.backends.layers.base import BaseImages

    if not settings.base_image or settings.build_backends == ("layers",):
        return ""  # Go alone, or found out by whoever needs it
    repository, _ = registries.repository(settings.base_image)
    machine = settings.base_platform.partition("-")[0]
    images = BaseImages(parse(settings.base_image), repository, machine)
    name = f"MAYFLY_BASE_IMAGE: {settings.base_image}"
    deadline = asyncio.get_running_loop().time() + _BASE_SECONDS
    workspace = parts.directories.temporary / f"base.{secrets.token_hex(6)}"
    workspace.mkdir(mode=0o700)
    try:
        while True:
            try:
                base = await images.get(workspace, log.info, log.warning)
            except Unreachable as error:
                # It has been tried for a while already, with pauses.
                log.warning("base_image_not_read", image=settings.base_image, error=str(error))
                if asyncio.get_running_loop().time() > deadline:
                    raise StartError(f"{name}: {error}; MAYFLY_BASE_PYTHON spares it") from error
            except (RegistryError, BuildFailed) as error:
                raise StartError(f"{name}: {error}; MAYFLY_BASE_PYTHON spares it") from error
            else:
                return base.python.release
    finally:
        remove([workspace])


async def _open(
    name: str, settings: Settings, parts: Parts, cluster: _Cluster, stack: AsyncExitStack
) -> Backend:
    if name == "layers":
        return _open_layers(settings, parts, stack)
    if name == "kaniko":
        return await _open_kaniko(settings, parts, cluster, stack)
    return BundleBackend(cluster.target, parts.interpreters, parts.locks, parts.limits)


def _open_layers(settings: Settings, parts: Parts, stack: AsyncExitStack) -> Backend:
    from services.builder.backends.layers.opened import open_layers

    return open_layers(
        stack,
        registry=settings.registry,
        insecure=settings.registry_insecure,
        auth=Path(settings.registry_auth) if settings.registry_auth else None,
        base_image=settings.base_image,
        platform=settings.base_platform,
        build_timeout=settings.build_timeout,
        at_once=settings.concurrent_installs,
        uv=parts.uv,
        catalog=parts.catalog,
        found=parts.interpreters,
        locks=parts.locks,
        limits=parts.limits,
    )


async def _open_kaniko(
    settings: Settings, parts: Parts, cluster: _Cluster, stack: AsyncExitStack
) -> Backend:
    from libs.blobs import Bucket, Location
    from libs.kube.cluster import Cluster
    from libs.kube.errors import KubeError
    from services.builder.backends.images import FunctionImages
    from services.builder.backends.kaniko.backend import KanikoBackend
    from services.builder.backends.kaniko.pods import Place
    from services.builder.backends.kaniko.recipes import Images, Recipes

    def bucket_with(key: str, secret: str) -> Location:
        return Location(
            bucket=settings.s3_bucket,
            endpoint_url=settings.s3_endpoint_url,
            region=settings.s3_region,
            path_style=settings.s3_path_style,
            access_key_id=key,
            secret_access_key=secret,
        )

    try:
        api = await Cluster.connect(settings.kubeconfig)
    except KubeError as error:
        raise StartError(f"MAYFLY_KUBECONFIG: {error}") from error
    stack.push_async_callback(api.close)
    secret = settings.aws_secret_access_key.get_secret_value()
    location = bucket_with(settings.aws_access_key_id, secret)
    of_pods = settings.build_pod_s3_secret_access_key.get_secret_value()
    return KanikoBackend(
        api,
        await stack.enter_async_context(Bucket(location)),
        FunctionImages(cluster.registries.functions()),
        Recipes(
            Images(
                base=settings.base_image,
                python=cluster.target.version,
                go=settings.go_image,
                go_base=settings.go_base_image,
            ),
            _RUNTIMES,
            parts.limits,
            parts.interpreters,
        ),
        Place(
            image=settings.kaniko_image,
            namespace=settings.builds_namespace,
            registry=settings.registry,
            installation=settings.installation,
            insecure=settings.registry_insecure,
            auth=_read(settings.registry_auth),
            memory=settings.build_pod_memory,
            cpu=settings.build_pod_cpu,
            index_secret=settings.index_secret,
            pull_secrets=settings.image_pull_secrets,
        ),
        prefix=settings.installation,
        pods_location=bucket_with(settings.build_pod_s3_access_key_id, of_pods)
        if settings.build_pod_s3_access_key_id
        else None,
        build_seconds=settings.build_timeout.total_seconds(),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text() if path else ""
    except OSError as error:
        raise StartError(f"MAYFLY_REGISTRY_AUTH: cannot read {path}: {error.strerror}") from error


def _environment(settings: Settings, parts: Parts) -> EnvironmentBackend:
    directories = parts.directories
    at_once = settings.concurrent_installs
    return EnvironmentBackend(
        directories,
        parts.interpreters,
        Environments(parts.uv, parts.catalog, directories.environments, PLATFORM, at_once),
        Go(settings.go, os.environ, directories.go_cache, _RUNTIMES / "go" / "template", at_once),
        parts.limits,
        fingerprint=f"sdists={settings.build_sdists}",
    )
