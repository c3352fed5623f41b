"""Durations, sources, addresses, timelines, resumption: what decides without a connection."""

from __future__ import annotations

import io
import os
import tarfile
from datetime import timedelta
from pathlib import Path

import pytest
from mayfly import durations
from mayfly.cli.failure import caret
from mayfly.cli.timeline import Timeline, depth_first, stretches
from mayfly.errors import AlreadyExists, InvalidRequest, MayflyError, Unavailable, error_class
from mayfly.requests import source_of
from mayfly.resources import Span
from mayfly.resume import Resumption
from mayfly.source import Source, asked_name, label
from mayfly.v1 import function_pb2
from mayfly.wire import endpoint

SCRIPT = """# /// script
# dependencies = ["fastapi"]
# [tool.mayfly]
# name = "notes"
# ///
import os
"""
HANDLER = "def handler(event, ctx):\n    return 1\n"
MS = 1_000_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600),
        ("1h30m", 5400),
        ("600s", 600),
        ("600", 600),
        ("1.5h", 5400),
        ("250ms", 0.25),
        (" 2D ", 172800),
        ("1w", 604800),
        ("1h 5m", 3900),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert durations.parse(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "soon", "-5s", "10 parsecs", "m", "1h-5m", "9" * 400 + "w"])
def test_what_is_no_duration_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|longer"):
        durations.parse(text)


def test_durations_are_shown_short() -> None:
    shown = [durations.short(timedelta(seconds=s)) for s in (0.012, 45, 600, 5400, 187_200, 3605)]
    assert shown == ["12ms", "45s", "10m", "1h30m", "2d4h", "1h"]
    assert durations.short(timedelta(seconds=-5)) == "-5s"
    assert [durations.clock(timedelta(seconds=s)) for s in (600, 5400, 7, -3)] == [
        "10:00",
        "1:30:00",
        "0:07",
        "0:00",
    ]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (HANDLER, "handler"),
        (SCRIPT, "script"),
        (SCRIPT + HANDLER, "handler"),
        (SCRIPT + "async def handler(e, c): ...\n", "handler"),
        (SCRIPT + "handler = print\n", "handler"),
        (SCRIPT + "from x import y as handler\n", "handler"),
        (SCRIPT + "class A:\n    def handler(self): ...\n", "script"),
        (SCRIPT + "def handler(event, ctx):\n    return (\n", "handler"),
        (SCRIPT + "x = (\n", "script"),
        ("x = 1\n", "handler"),
    ],
)
def test_a_script_has_a_block_and_no_handler(code: str, kind: str) -> None:
    assert Source.from_text(code).kind == kind


def test_go_is_known_by_its_package() -> None:
    source = Source.from_text("package main\n\nfunc Handle(e Event) any { return 1 }\n")
    assert (source.kind, source.runtime) == ("handler", "go")


def test_the_name_comes_from_the_script_or_its_file(tmp_path: Path) -> None:
    path = tmp_path / "My_Notes 2.py"
    path.write_text(HANDLER)
    assert Source.from_path(path).name == "my-notes-2"
    path.write_text(SCRIPT)
    assert Source.from_path(path).name == "notes"
    assert asked_name("# /// script\n# [tool.mayfly\n# ///\n") == ""
    assert asked_name("# /// script\n# [tool.mayfly]\n# name = 3\n# ///\n") == ""
    assert label("__.__") == ""


def test_a_folder_is_packed_the_same_way_whenever(tmp_path: Path) -> None:
    project = tmp_path / "My Project"
    (project / "pkg").mkdir(parents=True)
    (project / "main.py").write_text(HANDLER)
    (project / "pkg" / "a.py").write_text("x = 1\n")
    for left_out in (".git/config", ".venv/bin/python", "pkg/__pycache__/a.pyc", ".env"):
        path = project / left_out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (tmp_path / "outside").write_text("secret")
    (project / "link").symlink_to(tmp_path / "outside")
    first = Source.from_path(project)
    os.utime(project / "main.py", (1, 1))
    second = Source.from_path(project)
    assert first.content == second.content
    assert (first.kind, first.runtime, first.name) == ("archive", "python", "my-project")
    assert isinstance(first.content, bytes)
    with tarfile.open(fileobj=io.BytesIO(first.content)) as archive:
        assert archive.getnames() == ["main.py", "pkg/a.py"]


def test_what_cannot_be_read_is_refused_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "x.bin", tmp_path / "empty", tmp_path / "missing.py"):
        with pytest.raises(InvalidRequest) as caught:
            source_of(path)
        assert caught.value.fix
        assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("url", "target", "tls"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", False),
        ("http://mayfly.example/", "mayfly.example:80", False),
        ("https://mayfly.example", "mayfly.example:443", True),
        ("localhost:9000", "localhost:9000", False),
        ("http://[::1]:8080", "[::1]:8080", False),
        ("unix:/run/x.sock", "unix:/run/x.sock", False),
    ],
)
def test_addresses(url: str, target: str, tls: bool) -> None:
    found = endpoint(url)
    assert (found.target, found.tls) == (target, tls)


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://h:port", "http://h/f/hello"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r"write it like|address alone"):
        endpoint(url)


def test_the_reason_says_more_than_the_status() -> None:
    assert error_class("INVALID_ARGUMENT", "INVALID_TTL") is InvalidRequest
    assert error_class("UNKNOWN", "FUNCTION_EXISTS") is AlreadyExists
    assert error_class("DEADLINE_EXCEEDED", "") is Unavailable
    assert error_class("DATA_LOSS", "") is MayflyError


def test_a_stream_is_given_up_after_a_while_without_progress() -> None:
    resumption = Resumption(patience=1.0)
    pauses: list[float] = []
    while (pause := resumption.next_pause()) is not None:
        pauses.append(pause)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8]
    resumption.progressed()
    assert resumption.next_pause() == 0.05
    assert Resumption(patience=0).next_pause() is None


def span(name: str, parent: str, start_ms: float, end_ms: float) -> Span:
    return Span(
        raw=function_pb2.Span(),
        span_id=name,
        parent_span_id=parent,
        name=name,
        service="deployer",
        start=int(start_ms * MS),
        end=int(end_ms * MS),
        attributes={},
        error="",
    )


def test_a_long_pause_is_not_drawn_to_scale() -> None:
    spans = [
        span("root", "", 0, 600_100),
        span("build", "root", 0, 100),
        span("deploy", "root", 100, 200),
        span("expire", "root", 600_000, 600_100),
    ]
    assert [(s.length // MS, s.pause) for s in stretches(spans)] == [
        (200, False),
        (599_800, True),
        (100, False),
    ]
    timeline = Timeline(spans, 33)
    bars = {s.name: timeline.bar(s) for s in spans}
    assert (bars["root"].start, bars["root"].end) == (0, 33)
    assert (bars["build"].start, bars["build"].end) == (0, 10)
    assert (bars["deploy"].start, bars["deploy"].end) == (10, 20)
    assert (bars["expire"].start, bars["expire"].end) == (23, 33)
    assert [column for column, _ in timeline.pauses()] == [21]


def test_short_pauses_and_single_instants_are_drawn() -> None:
    spans = [span("a", "", 0, 50), span("b", "", 55, 100)]
    assert [s.pause for s in stretches(spans)] == [False]
    instant = [span("a", "", 5, 5)]
    bar = Timeline(instant, 20).bar(instant[0])
    assert (bar.start, bar.end) == (0, 1)
    assert Timeline([], 20).pauses() == []


def test_children_follow_their_parents_and_strays_are_roots() -> None:
    spans = [
        span("late", "root", 50, 60),
        span("stray", "unknown", 20, 30),
        span("root", "", 0, 100),
        span("child", "root", 10, 40),
        span("grandchild", "child", 15, 20),
    ]
    order = [(depth, s.name) for depth, s in depth_first(spans)]
    assert order == [(0, "root"), (1, "child"), (2, "grandchild"), (1, "late"), (0, "stray")]


def test_the_caret_stands_below_tabs_too() -> None:
    assert caret("\tx = (", 6).plain == "\t    ^"
    assert caret("ab", 5).plain == "    ^"
