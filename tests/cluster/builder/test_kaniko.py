"""Images that real Kaniko pods build, and what is left of them: the image alone."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from mayfly.v1.build_pb2 import Artefact

import runtimes
from libs.blobs import Bucket, Location
from libs.kube.cluster import Cluster as Kube
from libs.kube.kinds import POD
from libs.registry import Repository, Transport
from services.builder.backends.base import CONTEXT, Kind, Made, Order
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.images import FunctionImages
from services.builder.backends.kaniko import pods
from services.builder.backends.kaniko.backend import KanikoBackend
from services.builder.backends.kaniko.pods import Place
from services.builder.backends.kaniko.recipes import Images, Recipes
from services.builder.failures import BuildFailed
from tests.builder.kaniko.sources import GO, Quiet, archive
from tests.cluster.conftest import Cluster

pytestmark = [pytest.mark.needs_cluster, pytest.mark.timeout(180)]


class Told(Quiet):
    """Keeps what it is told of a build, and wakes who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.news = asyncio.Event()

    def log(self, line: str) -> None:
        super().log(line)
        self.news.set()

    async def until(self, text: str) -> None:
        """Wait for a line that holds `text`."""
        while not any(text in line for line in self.lines):
            self.news.clear()
            await self.news.wait()


@dataclass
class World:
    """A backend with a namespace, a bucket and a repository of its own."""

    cluster: Cluster
    namespace: str
    kube: Kube
    bucket: Bucket
    repository: Repository
    backend: KanikoBackend
    recipes: Recipes
    place: Place
    folder: Path
    told: Told = field(default_factory=Told)

    def order(self, source: str | bytes, kind: Kind = "handler", runtime: str = "python") -> Order:
        """Return an order of a new build."""
        uid = secrets.token_hex(6)
        return Order(
            id=secrets.token_hex(10),
            uid=uid,
            token="t",
            runtime=runtime,
            kind=kind,
            source=source.encode() if isinstance(source, str) else source,
            directory=self.folder / f"{uid}.artefact",
            files=self.folder / f"{uid}.files",
            workspace=self.folder / f"{uid}.workspace",
        )

    def with_place(self, **changes: Any) -> KanikoBackend:
        """Return the backend with other settings of its pods."""
        place = dataclasses.replace(self.place, **changes)
        images = FunctionImages(self.repository)
        return KanikoBackend(
            self.kube, self.bucket, images, self.recipes, place, prefix="p", room_seconds=1
        )

    async def fails(self, order: Order, backend: KanikoBackend | None = None) -> BuildFailed:
        """Return why a build failed, having looked that nothing is left of it."""
        with pytest.raises(BuildFailed) as raised:
            await (backend or self.backend).build(order, self.told)
        await self.nothing_left()
        return raised.value

    async def nothing_left(self) -> None:
        """Wait until there is no pod, no Secret and no context of builds any more."""
        watch = self.kube.watch(POD, self.namespace, pods.BUILD)
        async with watch as left, asyncio.timeout(15), left.subscribe() as changes:
            await left.ready(5)
            while left.objects:
                await anext(changes)
        secret = self.cluster.kubectl(
            "get", "secrets", "-n", self.namespace, "-l", pods.BUILD, "-o", "name"
        )
        assert secret == ""
        assert [blob.key async for blob in self.bucket.list()] == []

    async def pod(self, order: Order, number: int) -> dict[str, Any]:
        """Wait for the running pod of a try; return it."""

        def running(pod: dict[str, Any] | None) -> dict[str, Any] | None:
            return pod if pod and pod.get("status", {}).get("phase") == "Running" else None

        async with self.kube.watch(POD, self.namespace, pods.BUILD) as informer:
            return await informer.until(pods.name_of(order.uid, number), running, 60)


@pytest_asyncio.fixture
async def world(cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world of the test's own."""
    prefix = f"e-{secrets.token_hex(4)}"
    location = Location(
        bucket=prefix,
        endpoint_url=cluster.s3_endpoint,
        region=cluster.s3_region,
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    )
    index = json.loads(
        cluster.kubectl("get", "secret", "mayfly-test-index", "-n", "default", "-o", "json")
    )
    index["metadata"] = {"name": "index", "namespace": namespace}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(index))
    transport = Transport(cluster.registry, insecure=True, auth=None, patience=5)
    repository = Repository(transport, f"{prefix}/functions")
    recipes = Recipes(
        Images(cluster.python_image, "3.13", cluster.go_image, cluster.static_image),
        Path(next(iter(runtimes.__path__))),
        Limits(1 << 20, 100),
        Interpreters(os.environ, tmp_path / "interpreters", None),
    )
    place = Place(
        image=cluster.kaniko_image,
        namespace=namespace,
        registry=f"{cluster.registry}/{prefix}",
        insecure=True,
        index_secret="index",
    )
    kube = await Kube.connect(cluster.kubeconfig)
    async with Bucket(location) as bucket:
        await bucket.create()
        images = FunctionImages(repository)
        backend = KanikoBackend(kube, bucket, images, recipes, place, prefix="p")
        yield World(cluster, namespace, kube, bucket, repository, backend, recipes, place, tmp_path)
        await empty(repository)
        await empty(Repository(transport, f"{prefix}/cache"))
        for key in [blob.key async for blob in bucket.list()]:
            await bucket.delete(key)
        await bucket.drop()
    await transport.close()
    await kube.close()


async def empty(repository: Repository) -> None:
    """Remove all that a repository holds."""
    for tag in await repository.tags():
        digest = await repository.manifest_digest(tag)
        if digest is not None:
            await repository.delete_manifest(digest)


def answer(world: World, image: str, path: str = "/?name=you") -> str:
    """Run an image as functions run; return what it answers on its port."""
    name = f"run-{secrets.token_hex(3)}"
    spec = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "function",
                    "image": image,
                    "env": [{"name": "PORT", "value": "8123"}],
                    "readinessProbe": {"tcpSocket": {"port": 8123}, "periodSeconds": 1},
                    "securityContext": {"runAsNonRoot": True, "readOnlyRootFilesystem": True},
                }
            ],
        },
    }
    where = ("-n", world.namespace)
    world.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(spec))
    try:
        world.cluster.kubectl(
            "wait", *where, f"pod/{name}", "--for=condition=Ready", "--timeout=60s"
        )
        return world.cluster.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{world.namespace}/pods/{name}:8123/proxy{path}"
        )
    finally:
        world.cluster.kubectl("delete", *where, f"pod/{name}", "--wait=false")


async def test_a_python_handler_with_a_source_distribution(world: World) -> None:
    source = (
        '# /// script\n# dependencies = ["docopt==0.6.2"]\n# ///\n'
        "import docopt\n\n\ndef handler(event, ctx):\n    return {'v': docopt.__version__}\n"
    )
    order = world.order(source)
    artefact = await world.backend.build(order, world.told)
    assert artefact.kind == Artefact.KIND_PYTHON_HANDLER
    assert artefact.image.startswith(f"{world.place.repository}@sha256:")
    assert any(line.startswith("Running: [") for line in world.told.lines)
    await world.nothing_left()
    assert json.loads(answer(world, artefact.image)) == {"v": "0.6.2"}

    assert await world.backend.present(artefact)
    looked = await world.backend.look()
    assert [(t.type, t.name, t.uid) for t in looked.things] == [("image", order.id, order.uid)]
    assert await world.backend.remove([Made(order.id, order.uid, artefact)]) == {}
    assert not await world.backend.present(artefact)
    assert (await world.backend.look()).things == []


async def test_a_go_handler_and_one_that_does_not_compile(world: World) -> None:
    if not world.cluster.go_image:
        pytest.skip("the cluster has no image with a Go toolchain (MAYFLY_TEST_GO_IMAGE)")
    artefact = await world.backend.build(world.order(GO, runtime="go"), world.told)
    assert artefact.kind == Artefact.KIND_GO_HANDLER
    assert json.loads(answer(world, artefact.image)) == {"hi": "you"}
    failure = await world.fails(world.order(GO.replace("e.Query", "e.Nope"), runtime="go"))
    assert (failure.reason, failure.line) == ("COMPILE_FAILED", 4)
    assert "e.Nope undefined" in failure.message


async def test_an_archive_with_a_dockerfile_of_its_own(world: World) -> None:
    dockerfile = (
        f"FROM {world.cluster.static_image}\n"
        "RUN mkdir /www && echo built here > /www/index.html\n"
        "USER 65532:65532\n"
        'ENTRYPOINT ["/bin/sh", "-c", "exec httpd -f -p $PORT -h /www"]\n'
    )
    order = world.order(archive(Dockerfile=dockerfile), "archive")
    artefact = await world.backend.build(order, world.told)
    assert (artefact.kind, artefact.entry) == (Artefact.KIND_IMAGE, "")
    await world.nothing_left()
    assert answer(world, artefact.image, "/") == "built here\n"


async def test_a_step_that_fails_is_told_with_its_output(world: World) -> None:
    dockerfile = f"FROM {world.cluster.static_image}\nRUN echo so it goes; exit 7\n"
    failure = await world.fails(world.order(archive(Dockerfile=dockerfile), "archive"))
    assert (failure.reason, failure.exit_code) == ("BUILD_STEP_FAILED", 7)
    assert "so it goes" in failure.message
    assert "so it goes" in world.told.lines


def waits(world: World, seconds: int = 600) -> Order:
    """Return an order whose build takes some time."""
    dockerfile = f"FROM {world.cluster.static_image}\nRUN echo it waits; sleep {seconds}\n"
    return world.order(archive(Dockerfile=dockerfile), "archive")


async def test_a_pod_that_is_deleted_is_made_again(world: World) -> None:
    order = waits(world, 3)
    building = asyncio.create_task(world.backend.build(order, world.told))
    pod = await world.pod(order, 1)
    await world.kube.delete(POD, world.namespace, pod["metadata"]["name"])
    async with asyncio.timeout(1):
        await world.told.until("it is begun again")
    assert (await building).image
    await world.nothing_left()


async def test_a_pod_that_is_deleted_twice(world: World) -> None:
    order = waits(world)
    building = asyncio.create_task(world.fails(order))
    for number in (1, 2):
        pod = await world.pod(order, number)
        await world.kube.delete(POD, world.namespace, pod["metadata"]["name"])
    failure = await building
    assert failure.reason == "BUILD_INTERRUPTED"
    assert any("it is begun again" in line for line in world.told.lines)


async def test_who_takes_a_build_over_goes_on_with_its_pod(world: World) -> None:
    order = waits(world)
    lost = asyncio.create_task(world.backend._push(*await prepared(world, order)))  # pyright: ignore
    pod = await world.pod(order, 1)
    other = Told()
    backend = world.with_place()
    taken = asyncio.create_task(backend.build(order, other))
    async with asyncio.timeout(20):
        await other.until("it waits")
    assert any("goes on" in line for line in other.lines)
    assert (await world.pod(order, 1))["metadata"]["uid"] == pod["metadata"]["uid"]
    for task in (taken, lost):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await world.nothing_left()


async def prepared(world: World, order: Order) -> tuple[Any, ...]:
    """Return what `_push` takes."""
    placed = await world.recipes.placed(order)
    recipe = await world.recipes.of(order, placed, [], world.told)
    deadline = asyncio.get_running_loop().time() + 60
    return order, recipe, [], world.told, deadline


async def test_an_image_that_cannot_be_pulled(world: World) -> None:
    backend = world.with_place(image=f"{world.cluster.registry}/no/kaniko:1")
    failure = await world.fails(waits(world), backend)
    assert failure.reason == "BUILD_IMAGE_PULL_FAILED"


async def test_a_pod_that_no_node_takes(world: World) -> None:
    backend = world.with_place(cpu="1000", requests_cpu="1000")
    failure = await world.fails(waits(world), backend)
    assert failure.reason == "BUILD_NOT_STARTED"
    assert any("waits for room" in line for line in world.told.lines)


async def test_a_quota_that_is_used_up(world: World) -> None:
    world.cluster.kubectl(
        "create", "quota", "none", "--hard=pods=0", "-n", world.namespace, "--save-config"
    )
    failure = await world.fails(waits(world), world.with_place())
    assert failure.reason == "BUILD_NOT_STARTED"
    assert "exceeded quota: none" in failure.message


async def test_a_verb_that_is_missing_is_named(world: World) -> None:
    where = ("-n", world.namespace)
    world.cluster.kubectl("create", "serviceaccount", "weak", *where)
    world.cluster.kubectl(
        "create", "role", "weak", "--verb=get,list,watch", "--resource=pods,secrets", *where
    )
    account = f"--serviceaccount={world.namespace}:weak"
    world.cluster.kubectl("create", "rolebinding", "weak", "--role=weak", account, *where)
    view = world.cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json")
    config = json.loads(view)
    token = world.cluster.kubectl("create", "token", "weak", *where)
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path = world.folder / "weak.json"
    path.write_text(json.dumps(config))
    weak = await Kube.connect(str(path))
    try:
        images = FunctionImages(world.repository)
        backend = KanikoBackend(weak, world.bucket, images, world.recipes, world.place, prefix="p")
        failure = await world.fails(waits(world), backend)
    finally:
        await weak.close()
    assert failure.reason == "CLUSTER_FORBIDDEN"
    assert "create secrets" in failure.message


async def test_a_bucket_that_is_missing(world: World) -> None:
    location = dataclasses.replace(world.bucket.location, bucket="e-none")
    async with Bucket(location) as missing:
        images = FunctionImages(world.repository)
        backend = KanikoBackend(world.kube, missing, images, world.recipes, world.place)
        failure = await world.fails(waits(world), backend)
    assert failure.reason == "STORAGE_UNREACHABLE"
    assert "e-none" in failure.message


class Line:
    """A line to a server through an address of this machine; when it is cut, nothing answers."""

    def __init__(self, target: str) -> None:
        self.cut = not target
        self.address = ""
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def open(self, host: str) -> AsyncIterator[None]:
        try:
            server = await asyncio.start_server(self._take, host, 0)
        except OSError:
            pytest.skip(f"the registry's {host} is not this machine's: nothing can listen there")
        self.address = f"{host}:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()
            for writer in self._writers:
                writer.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self.cut:
            return
        host, _, port = self._target.rpartition(":")
        back, forth = await asyncio.open_connection(host, int(port))
        self._writers.add(forth)
        await asyncio.gather(self._pass_on(reader, forth), self._pass_on(back, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while (data := await reader.read(65536)) and not self.cut:
                writer.write(data)
            if not self.cut:
                writer.close()


@asynccontextmanager
async def line(world: World, target: str = "") -> AsyncIterator[Line]:
    """Lend a line to `target` ("host:port") that pods reach; without one it is cut already."""
    one = Line(target)
    async with one.open(world.cluster.registry.partition(":")[0]):
        yield one


async def test_a_bucket_that_no_longer_answers(world: World) -> None:
    storage = world.bucket.location.endpoint_url.removeprefix("http://")
    async with line(world, storage) as one:
        url = f"http://{one.address}"
        async with Bucket(dataclasses.replace(world.bucket.location, endpoint_url=url)) as bucket:
            images = FunctionImages(world.repository)
            backend = KanikoBackend(
                world.kube,
                bucket,
                images,
                world.recipes,
                world.place,
                prefix="p",
                build_seconds=15,
            )
            order = waits(world)
            building = asyncio.create_task(backend.build(order, world.told))
            async with world.kube.watch(POD, world.namespace, pods.BUILD) as informer:
                await informer.until(pods.name_of(order.uid, 1), lambda pod: pod, 10)
            one.cut = True
            with pytest.raises(BuildFailed) as raised:
                async with asyncio.timeout(16):
                    await building
    assert raised.value.reason == "STORAGE_UNREACHABLE", (raised.value, world.told.lines)
    assert one.address in raised.value.message
    # It could not be removed while it was away: that is a sweep's work.
    contexts = [t for t in (await world.backend.look()).things if t.type == CONTEXT]
    assert len(contexts) == 1
    assert await world.backend.remove_thing(contexts[0]) == ""
    await world.nothing_left()


async def test_a_bucket_that_does_not_answer_pods(world: World) -> None:
    async with line(world) as one:
        backend = KanikoBackend(
            world.kube,
            world.bucket,
            FunctionImages(world.repository),
            world.recipes,
            world.place,
            pods_location=dataclasses.replace(
                world.bucket.location, endpoint_url=f"http://{one.address}"
            ),
            build_seconds=15,
        )
        failure = await world.fails(waits(world), backend)
    assert failure.reason == "BUILD_TIMEOUT", (failure, world.told.lines)
    assert one.address in failure.message
    assert world.place.host in failure.message


async def test_a_bucket_that_does_not_answer_the_builder(world: World) -> None:
    async with line(world) as one:
        url = f"http://{one.address}"
        async with Bucket(dataclasses.replace(world.bucket.location, endpoint_url=url)) as away:
            images = FunctionImages(world.repository)
            backend = KanikoBackend(
                world.kube, away, images, world.recipes, world.place, build_seconds=8
            )
            # The worker's own limit, which says nothing of the bucket.
            async with asyncio.timeout(8):
                failure = await world.fails(waits(world), backend)
    assert failure.reason == "STORAGE_UNREACHABLE"
    assert url in failure.message


async def test_a_registry_that_takes_no_push_and_says_nothing(world: World) -> None:
    async with line(world) as one:
        transport = Transport(one.address, insecure=True, auth=None, patience=5)
        backend = KanikoBackend(
            world.kube,
            world.bucket,
            FunctionImages(Repository(transport, "nobody/functions")),
            world.recipes,
            dataclasses.replace(world.place, registry=f"{one.address}/nobody"),
            build_seconds=15,
        )
        failure = await world.fails(waits(world), backend)
        await transport.close()
    assert failure.reason == "REGISTRY_UNREACHABLE", (failure, world.told.lines)
    assert one.address in failure.message


async def test_a_build_that_takes_too_long(world: World) -> None:
    images = FunctionImages(world.repository)
    backend = KanikoBackend(
        world.kube, world.bucket, images, world.recipes, world.place, build_seconds=20
    )
    failure = await world.fails(waits(world), backend)
    assert failure.reason == "BUILD_TIMEOUT", world.told.lines
    assert any("it waits" in line for line in world.told.lines)


async def test_a_registry_that_does_not_answer_is_tried_until_the_end(world: World) -> None:
    nowhere = f"{world.cluster.registry.partition(':')[0]}:5998/nobody"
    backend = KanikoBackend(
        world.kube,
        world.bucket,
        FunctionImages(world.repository),
        world.recipes,
        dataclasses.replace(world.place, registry=nowhere),
        prefix="p",
        build_seconds=12,
    )
    failure = await world.fails(waits(world), backend)
    assert failure.reason == "REGISTRY_UNREACHABLE"
    assert any("tried again in" in line for line in world.told.lines)


async def test_a_build_that_runs_out_of_memory(world: World) -> None:
    backend = world.with_place(memory="200Mi", requests_memory="100Mi")
    base = world.cluster.static_image
    dockerfile = f"FROM {base}\nRUN head -c 900000000 /dev/zero | tail -n 2\n"
    failure = await world.fails(world.order(archive(Dockerfile=dockerfile), "archive"), backend)
    assert failure.reason == "BUILD_OUT_OF_MEMORY"
