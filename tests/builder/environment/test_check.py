"""Syntax, and the handler."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from services.builder.backends.environment.check import check, judge
from services.builder.backends.environment.interpreters import Interpreters, own
from services.builder.backends.environment.syntax import examine
from services.builder.failures import BuildFailed


def problem(source: str, *, wants_handler: bool = True) -> BuildFailed | None:
    """Return what is wrong with a source."""
    return judge(examine(source.encode()), source, wants_handler=wants_handler)


@pytest.mark.parametrize(
    "source",
    [
        "def handler(event, ctx): pass",
        "async def handler(event, ctx): pass",
        "def handler(*args): pass",
        "def handler(event, ctx, more=1, *, key=2): pass",
        "handler = lambda event, ctx: 1",
        "handler = make()",
        "handler: object = make()",
        "import handler",
        "from x import handler",
        "from x import y as handler",
        "from x import *",
        "class handler: pass",
        "if True:\n  def handler(event, ctx): pass",
        "try:\n  from x import handler\nexcept ImportError:\n  handler = other",
        "with a:\n  pass\nelse_ = 1\nhandler, b = make()",
        "@wraps\ndef handler(): pass",
        "match x:\n  case 1:\n    handler = f",
        "for handler in things: pass",
    ],
)
def test_sources_that_have_a_handler(source: str) -> None:
    assert problem(source) is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def other(): pass", "no handler"),
        ("def outer():\n  def handler(event, ctx): pass", "no handler"),
        ("class A:\n  def handler(event, ctx): pass", "no handler"),
        ("handler = 5", "not a function"),
        ("handler = {'a': 1}", "not a function"),
        ("handler: object", "no handler"),
        ("def handler(): pass", "no arguments"),
        ("def handler(event): pass", "one argument"),
        ("def handler(a, b, c): pass", "needs 3 arguments"),
        ("def handler(a, b, *, key): pass", "key"),
        ("handler = lambda event: 1", "one argument"),
        ("def handler(event, ctx): pass\nhandler = 3", "not a function"),
    ],
)
def test_sources_that_have_none(source: str, said: str) -> None:
    found = problem(source)
    assert found is not None
    assert found.reason == "HANDLER_MISSING"
    assert said in found.message
    assert problem(source, wants_handler=False) is None


def test_a_syntax_error_has_its_place() -> None:
    found = problem("import os\n\ndef handler(e, c):\n    return (1 + 2\n")
    assert found is not None
    assert (found.reason, found.line, found.column) == ("SOURCE_SYNTAX", 4, 12)
    assert found.message == "'(' was never closed"
    assert found.source_line == "    return (1 + 2"
    assert "line 4, column 12" in found.fix


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\nreturn 2\n", 2),  # only the compiler sees this one
        ("x = 1\0\ny = 2\n", 1),
        ("def f():\n  global x\n  x = 1\n  def g():\n    nonlocal zz\n", 5),
        ("x = " + "9" * 5000, 1),
        ("if x:\npass", 2),
    ],
)
def test_errors_of_all_kinds_have_a_line(source: str, line: int) -> None:
    found = problem(source)
    assert found is not None
    assert (found.reason, found.line) == ("SOURCE_SYNTAX", line)


def test_a_declared_encoding_that_is_not_utf8_is_honoured() -> None:
    found = problem("# -*- coding: no-such-codec -*-\nx = 1\n")
    assert found is not None
    assert "no-such-codec" in found.message


@pytest.mark.parametrize("text", ["x = a" + ".b" * 20_000, "x = " + "-" * 60_000 + "1"])
def test_what_is_nested_too_deeply_is_an_error_of_the_source(text: str) -> None:
    found = problem(text)
    assert found is None or found.reason in ("SOURCE_SYNTAX", "HANDLER_MISSING")


def test_long_chains_of_conditions_are_walked() -> None:
    source = "if a: pass\n" + "elif b: pass\n" * 900 + "def handler(event, ctx): pass\n"
    assert problem(source) is None


async def test_a_large_source_is_checked_in_a_child(tmp_path: Path) -> None:
    path = tmp_path / "handler.py"
    filler = "".join(f"a{n} = {n}\n" for n in range(9000))
    path.write_text(f"{filler}def handler(event, ctx):\n    return (1\n")
    with pytest.raises(BuildFailed) as raised:
        await check(path.read_bytes(), path, own(), wants_handler=True)
    assert (raised.value.reason, raised.value.line) == ("SOURCE_SYNTAX", 9002)
    path.write_text(f"{filler}def handler(event, ctx):\n    return 1\n")
    await check(path.read_bytes(), path, own(), wants_handler=True)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="needs a platform Python older than 3.12")
async def test_syntax_of_a_newer_python_is_asked_of_that_python(tmp_path: Path) -> None:
    found = await Interpreters(os.environ, tmp_path / "none", None).found()
    newer = [one for one in found if one.release >= (3, 12)]
    if not newer:
        pytest.skip("no Python 3.12 or newer here")
    path = tmp_path / "handler.py"
    path.write_text("type X = int\ndef handler[T](event: T, ctx): return 1\n")
    await check(path.read_bytes(), path, newer[0], wants_handler=True)
    with pytest.raises(BuildFailed):
        await check(path.read_bytes(), path, own(), wants_handler=True)


async def test_syntax_that_an_older_python_lacks_is_refused_for_it(tmp_path: Path) -> None:
    found = await Interpreters(os.environ, tmp_path / "none", None).found()
    older = [one for one in found if one.release < (3, 10)]
    if not older:
        pytest.skip("no Python 3.9 here")
    path = tmp_path / "handler.py"
    path.write_text("def handler(event, ctx):\n    match event:\n        case _: return 1\n")
    await check(path.read_bytes(), path, own(), wants_handler=True)
    with pytest.raises(BuildFailed) as raised:
        await check(path.read_bytes(), path, older[0], wants_handler=True)
    assert raised.value.line == 2


async def test_nothing_of_a_source_is_executed(tmp_path: Path) -> None:
    path, trace = tmp_path / "handler.py", tmp_path / "trace"
    padding = "# " + "x" * 70_000 + "\n"
    path.write_text(f"open({str(trace)!r}, 'w')\n{padding}def handler(e, c): pass\n")
    await check(path.read_bytes(), path, own(), wants_handler=True)
    assert not trace.exists()
