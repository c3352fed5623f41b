"""How the four services' settings come about on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.rpc.process import StartError
from services.standalone.config import StandaloneSettings
from services.standalone.wiring import unknown_settings, wire


def settings(**given: object) -> StandaloneSettings:
    return StandaloneSettings(data_dir=Path("/tmp/m"), **given)  # type: ignore[arg-type]


def test_the_services_find_each_other_on_sockets_of_the_data_directory() -> None:
    wiring = wire(settings(), "postgresql://x@/y")
    assert wiring.deployer.deployer_listen == wiring.janitor.deployer_address
    assert wiring.builder.builder_listen == wiring.deployer.builder_address
    assert wiring.gateway.janitor_address.startswith("unix:/tmp/m/")


def test_a_misspelt_setting_is_refused_with_the_one_that_was_meant() -> None:
    lines = unknown_settings(["MAYFLY_LISTN", "HOME", "MAYFLY_URL"], {"MAYFLY_LISTEN"})
    assert lines == ["MAYFLY_LISTN: there is no such setting; did you mean MAYFLY_LISTEN?"]


def test_a_wrong_setting_of_any_service_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAYFLY_MAX_TTL", "soon")
    with pytest.raises(StartError, match=r"^MAYFLY_MAX_TTL: "):
        wire(settings(), "postgresql://x@/y")


def test_a_data_directory_too_long_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAYFLY_DATA_DIR", "/tmp/" + "x" * 60)
    with pytest.raises(ValueError, match="too long for unix sockets"):
        StandaloneSettings()


@pytest.mark.parametrize(
    ("listen", "url"),
    [("127.0.0.1:8080", "http://localhost:8080"), ("10.1.2.3:80", "http://10.1.2.3:80")],
)
def test_urls_begin_with_what_is_listened_on(listen: str, url: str) -> None:
    assert wire(settings(listen=listen), "postgresql://x@/y").public_url == url
