"""Which of several backends builds, and whose a thing is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from mayfly.v1.build_pb2 import Artefact, Runtime
from mayfly.v1.source_pb2 import Stage

from services.builder.backends.base import Kind, Made, NotHere, Order, Step, Thing, World
from services.builder.backends.image import GivenImages
from services.builder.backends.local import Local
from services.builder.choice import Choice
from services.builder.directories import Directories
from services.builder.failures import BuildFailed

REPOSITORY = "registry.test:5000/mayfly/functions"
DIGEST = "sha256:" + "a" * 64


@dataclass
class Recorded:
    """A backend that records what it is asked for; `refuses` says why it cannot build."""

    name: str
    kinds: Sequence[Kind] = ("handler",)
    refuses: str = ""
    prints: str = "1"
    away: str = ""
    asked: list[str] = field(default_factory=list[str])

    def supports(self, runtime: str, kind: Kind) -> bool:
        return runtime == "python" and kind in self.kinds

    async def runtimes(self) -> Sequence[Runtime]:
        return [Runtime(name="python", available=not self.away, sources=self.kinds)]

    async def fingerprint(self, runtime: str) -> str:
        if self.away:
            raise BuildFailed(self.away, "away", "wait")
        return self.prints

    async def build(self, order: Order, progress: Progress) -> Artefact:
        self.asked.append("build")
        order.files.mkdir()
        order.make_workspace()
        if self.refuses:
            raise NotHere(self.refuses)
        return Artefact(entry=self.name)

    async def present(self, artefact: Artefact) -> bool:
        self.asked.append("present")
        if self.away:
            raise BuildFailed(self.away, "away", "wait")
        return False

    async def lost(self, builds: Sequence[Made]) -> Sequence[str]:
        self.asked.append(f"lost {' '.join(build.uid for build in builds)}")
        if self.away:
            raise BuildFailed(self.away, "away", "wait")
        return [build.uid for build in builds]

    async def remove(self, builds: Sequence[Made]) -> dict[str, str]:
        self.asked.append("remove")
        if self.away:
            raise OSError("away")
        return {}

    async def look(self) -> World:
        return World([Thing("image", f"{REPOSITORY}:a-b", "a", "b")], ["images (1)"])

    async def remove_thing(self, thing: Thing) -> str:
        self.asked.append(f"remove {thing.type}")
        return ""


class Progress:
    """Keeps log lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    def step(self, stage: Stage.ValueType) -> AbstractContextManager[Step]:
        return nullcontext(self)

    def detail(self, text: str) -> None:
        self.lines.append(text)

    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[None]:
        return nullcontext()


async def nobody_answers(image: str) -> str:
    raise BuildFailed("REGISTRY_UNREACHABLE", f"no answer about {image}", "wait")


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    made = Directories(tmp_path / "builds")
    made.prepare()
    return made


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order(
        id="ab",
        uid="cd",
        token="ef",
        runtime="python",
        kind="handler",
        source=b"x",
        directory=tmp_path / "artefact",
        files=tmp_path / "files",
        workspace=tmp_path / "work",
    )


def choice(directories: Directories, *backends: Recorded, images: bool = True) -> Choice:
    given = GivenImages(REPOSITORY, {"registry.test:5000"}, nobody_answers) if images else None
    return Choice(backends, given, Local(directories), lambda digest, uid: f"{digest}.{uid}")


async def test_the_next_goes_on_where_one_cannot(directories: Directories, order: Order) -> None:
    layers, kaniko = Recorded("layers", refuses="a has no wheel"), Recorded("kaniko")
    progress = Progress()
    artefact = await choice(directories, layers, kaniko).build(order, progress)
    assert artefact.entry == "kaniko"
    assert progress.lines == ["kaniko goes on: a has no wheel"]


async def test_the_first_that_can_build_does(directories: Directories, order: Order) -> None:
    other, layers, kaniko = Recorded("bundle", ("script",)), Recorded("layers"), Recorded("kaniko")
    artefact = await choice(directories, other, layers, kaniko).build(order, Progress())
    assert (artefact.entry, other.asked, kaniko.asked) == ("layers", [], [])


async def test_what_nobody_can_build_names_the_one_that_could(
    directories: Directories, order: Order
) -> None:
    with pytest.raises(BuildFailed) as raised:
        await choice(directories, Recorded("layers", refuses="a has no wheel")).build(
            order, Progress()
        )
    assert raised.value.reason == "SOURCE_UNSUPPORTED"
    assert raised.value.message == "a has no wheel"
    assert "`kaniko`" in raised.value.fix


async def test_who_may_build_and_with_what_decides_a_build(directories: Directories) -> None:
    layers, kaniko = Recorded("layers"), Recorded("kaniko")
    prints = {
        await choice(directories, *backends).fingerprint("python", "handler")
        for backends in (
            (layers,),
            (kaniko,),
            (layers, kaniko),
            (kaniko, layers),
            (layers, Recorded("kaniko", prints="2")),
            (layers, Recorded("kaniko", away="REGISTRY_UNREACHABLE")),
        )
    }
    assert len(prints) == 6
    with pytest.raises(BuildFailed):
        await choice(directories, Recorded("layers", away="UNKNOWN_RUNTIME")).fingerprint(
            "python", "handler"
        )


async def test_an_image_is_looked_for_once_and_taken_for_there_where_nobody_answers(
    directories: Directories,
) -> None:
    layers, kaniko = Recorded("layers"), Recorded("kaniko")
    both = choice(directories, layers, kaniko)
    assert not await both.present(Artefact(image=f"{REPOSITORY}@{DIGEST}"))
    assert (layers.asked, kaniko.asked) == (["present"], [])
    assert await both.present(Artefact(image=f"ghcr.io/me/own@{DIGEST}"))
    away = choice(directories, Recorded("layers", away="REGISTRY_UNREACHABLE"))
    assert await away.present(Artefact(image=f"{REPOSITORY}@{DIGEST}"))
    assert not await both.present(Artefact(directory="/made/under/other/settings"))


async def test_only_images_of_builds_can_be_lost_and_only_where_they_can_be_seen(
    directories: Directories,
) -> None:
    ours = Made("a", "u1", Artefact(image=f"{REPOSITORY}@{DIGEST}"))
    given = Made("b", "u2", Artefact(image=f"ghcr.io/me/own@{DIGEST}"))
    bundled = Made("c", "u3", Artefact(python_version="3.13"))
    nothing = Made("d", "u4", None)
    layers, kaniko = Recorded("layers"), Recorded("kaniko")
    both = choice(directories, Recorded("bundle"), layers, kaniko)
    assert await both.lost([ours, given, bundled, nothing]) == {"u1"}
    assert (layers.asked, kaniko.asked) == (["lost u1"], [])
    assert await both.lost([given, bundled]) == frozenset()
    assert await choice(directories, Recorded("bundle")).lost([ours]) == frozenset()
    with pytest.raises(BuildFailed):
        await choice(directories, Recorded("layers", away="REGISTRY_UNREACHABLE")).lost([ours])


async def test_each_removes_its_own(directories: Directories) -> None:
    bundle, layers, kaniko = Recorded("bundle"), Recorded("layers"), Recorded("kaniko")
    all_of_them = choice(directories, bundle, layers, kaniko)
    left = directories.workspace("u1", "token")
    left.mkdir()
    ours = Made("a", "u1", Artefact(image=f"{REPOSITORY}@{DIGEST}"))
    assert await all_of_them.remove([ours]) == {}
    assert not left.exists()
    assert (bundle.asked, layers.asked, kaniko.asked) == ([], ["remove"], [])
    await all_of_them.remove([Made("b", "u2", Artefact(image=f"ghcr.io/me/own@{DIGEST}"))])
    assert layers.asked == ["remove"]
    await all_of_them.remove([Made("c", "u3", None)])
    assert (bundle.asked, layers.asked, kaniko.asked) == (
        ["remove"],
        ["remove", "remove"],
        ["remove"],
    )
    kaniko.away = "gone"
    assert await all_of_them.remove([Made("d", "u4", None)]) == {"u4": "kaniko: away"}


async def test_images_of_one_repository_are_listed_once(directories: Directories) -> None:
    layers, kaniko = Recorded("layers"), Recorded("kaniko")
    both = choice(directories, layers, kaniko)
    world = await both.look()
    images = [thing for thing in world.things if thing.type == "image"]
    assert [thing.id for thing in images] == [f"{REPOSITORY}:a-b"]
    assert [said for said in world.looked_at if "images" in said] == ["images (1)"]
    assert await both.remove_thing(images[0]) == ""
    assert await both.remove_thing(Thing("pod", "p", "", "")) == ""
    assert (layers.asked, kaniko.asked) == (["remove image"], ["remove pod"])
    assert await both.remove_thing(both.environment_of("d", "u")) == ""
    assert layers.asked[-1] == "remove environment"
    assert "artefact" in await both.remove_thing(Thing("artefact", "/", "", ""))


async def test_a_given_image_is_taken_as_it_is_where_nobody_may_be_asked(
    directories: Directories, order: Order
) -> None:
    one = choice(directories, Recorded("kaniko"))
    assert one.supports("python", "image")
    assert not choice(directories, Recorded("bundle"), images=False).supports("python", "image")
    for image, why in (
        ("ghcr.io/me/own:1", "does not ask ghcr.io"),
        ("nginx", "does not ask docker.io"),
        ("registry.test:5000/own", "no answer about registry.test:5000/own:latest"),
    ):
        assert await one.settled("image", image.encode()) == image.encode()
        progress = Progress()
        wanted = replace(order, kind="image", source=image.encode())
        artefact = await one.build(wanted, progress)
        assert (artefact.kind, artefact.image) == (Artefact.KIND_IMAGE, image)
        assert why in progress.lines[0]
    pinned = f"ghcr.io/me/own@{DIGEST}".encode()
    assert await one.settled("image", pinned) == pinned


async def test_images_are_among_what_is_taken_where_they_run(directories: Directories) -> None:
    for images, sources in ((True, ["handler", "image"]), (False, ["handler"])):
        one = choice(directories, Recorded("kaniko"), images=images)
        for _ in range(2):
            (runtime,) = await one.runtimes()
            assert list(runtime.sources) == sources


@pytest.mark.parametrize(
    "image",
    ["", "UPPER/case", "a b", "http://registry/x", "x@sha256:12", f"{REPOSITORY}:a-b", "../x"],
)
async def test_images_that_are_refused(directories: Directories, image: str) -> None:
    with pytest.raises(BuildFailed) as raised:
        await choice(directories, Recorded("kaniko")).settled("image", image.encode())
    assert raised.value.reason == "INVALID_SOURCE"
