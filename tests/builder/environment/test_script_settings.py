"""The [tool.mayfly] table."""

from __future__ import annotations

from typing import Any

import pytest

from services.builder.backends.environment.pep723 import Metadata
from services.builder.backends.environment.script_settings import read
from services.builder.failures import BuildFailed


def settings(**values: Any) -> Any:
    """Return what a table of these keys asks for."""
    table = {key.replace("_", "-"): value for key, value in values.items()}
    return read(Metadata(tool={"mayfly": table}, line=3))


def test_all_keys() -> None:
    got = settings(name="notes", port=9000, health="/up?x=1", ttl="10m", idle_timeout=90)
    assert (got.name, got.port, got.health) == ("notes", 9000, "/up?x=1")
    assert (got.ttl.seconds, got.idle_timeout.seconds) == (600, 90)


def test_what_is_not_named_is_unset() -> None:
    got = settings()
    assert not got.HasField("ttl")
    assert (got.name, got.port) == ("", 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "My_Notes"},
        {"name": 1},
        {"port": 0},
        {"port": 70000},
        {"port": "8000"},
        {"port": True},
        {"health": "up"},
        {"health": "/a b"},
        {"ttl": "soon"},
        {"ttl": -1},
        {"ttl": 0},
        {"ttl": "99999999999d"},
        {"ttl": float("nan")},
        {"idle_timeout": []},
    ],
)
def test_wrong_values_name_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(BuildFailed) as raised:
        settings(**wrong)
    key = next(iter(wrong)).replace("_", "-")
    assert raised.value.reason == "SCRIPT_METADATA"
    assert key in raised.value.message
    assert raised.value.line == 3


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(BuildFailed) as raised:
        settings(idle_timeuot="1m")
    assert "idle-timeout" in raised.value.fix


def test_a_table_that_is_none() -> None:
    with pytest.raises(BuildFailed):
        read(Metadata(tool={"mayfly": 1}))
