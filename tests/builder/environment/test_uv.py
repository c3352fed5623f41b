"""uv's environment variables."""

from __future__ import annotations

from pathlib import Path

from services.builder.backends.environment.uv import Paths, environment, index_settings

PATHS = Paths(Path("/data/cache"), Path("/data/interpreters"))


def test_the_operators_indexes_proxies_and_certificates_are_passed_on() -> None:
    given = {
        "UV_DEFAULT_INDEX": "https://localhost/simple",
        "https_proxy": "http://localhost:3128",
        "NO_PROXY": "localhost",
        "SSL_CERT_FILE": "/etc/ssl/own.pem",
        "UV_HTTP_TIMEOUT": "5",
    }
    got = environment(given, PATHS)
    assert given.items() <= got.items()


def test_nothing_of_the_platform_and_nothing_that_decides_where_things_go() -> None:
    given = {
        "MAYFLY_DATABASE_URL": "postgresql://secret@localhost/x",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "UV_CACHE_DIR": "/elsewhere",
        "UV_PYTHON": "/elsewhere",
        "UV_PROJECT_ENVIRONMENT": "/elsewhere",
        "UV_NO_BUILD_PACKAGE": "x",
        "VIRTUAL_ENV": "/elsewhere",
        "PYTHONPATH": "/elsewhere",
    }
    got = environment(given, PATHS)
    assert not {"secret", "/elsewhere"} & set(" ".join(got.values()).replace("@", " ").split())
    assert got["UV_CACHE_DIR"] == "/data/cache"
    assert got["UV_PYTHON_DOWNLOADS"] == "never"


def test_who_has_configured_only_pip_means_uv_as_well() -> None:
    given = {"PIP_INDEX_URL": "https://localhost/pip"}
    assert environment(given, PATHS)["UV_DEFAULT_INDEX"] == "https://localhost/pip"
    both = given | {"UV_INDEX_URL": "https://localhost/uv"}
    assert "UV_DEFAULT_INDEX" not in environment(both, PATHS)


def test_a_resolution_depends_on_the_indexes() -> None:
    one = index_settings(environment({"UV_INDEX": "https://a"}, PATHS))
    other = index_settings(environment({"UV_INDEX": "https://b"}, PATHS))
    assert one != other
    proxies = environment({"UV_INDEX": "https://a", "NO_PROXY": "x"}, PATHS)
    assert index_settings(proxies) == one
