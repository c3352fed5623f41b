# ruff: noqa: E501 - the lines are uv's own
"""What uv says, collected from real runs of uv 0.13, and what it means."""

from __future__ import annotations

import pytest

from services.builder.backends.environment.uv_failures import classify, redacted

UNSOLVABLE = "error: No solution found when resolving dependencies\n  cause: "
OUTPUT: dict[str, tuple[int, str, str, str]] = {
    "unknown package": (
        1,
        f"{UNSOLVABLE}Because no-such-package was not found in the package registry and you require "
        "no-such-package, we can conclude that your requirements are unsatisfiable.",
        "PACKAGE_NOT_FOUND",
        "no-such-package",
    ),
    "unknown version": (
        1,
        f"{UNSOLVABLE}Because there is no version of six==0.0.0.1 and you require six==0.0.0.1, we "
        "can conclude that your requirements are unsatisfiable.",
        "PACKAGE_NOT_FOUND",
        "six",
    ),
    "version of the future": (
        1,
        f"{UNSOLVABLE}Because only six<=1.17.0 is available and you require six>=99, we can conclude "
        "that your requirements are unsatisfiable.",
        "PACKAGE_NOT_FOUND",
        "six",
    ),
    "too old for exclude-newer": (
        1,
        f"{UNSOLVABLE}Because there are no versions of idna and you require idna, we can conclude "
        "that your requirements are unsatisfiable.\n\nhint: `idna` was filtered by `exclude-newer` "
        "to only include packages uploaded before 2001-01-02T00:00:00Z.",
        "PACKAGE_NOT_FOUND",
        "idna",
    ),
    "direct conflict": (
        1,
        f"{UNSOLVABLE}Because you require six==1.16.0 and six==1.15.0, we can conclude that your "
        "requirements are unsatisfiable.",
        "REQUIREMENTS_CONFLICT",
        "relax",
    ),
    "conflict through a dependency": (
        1,
        f"{UNSOLVABLE}Because fastapi>=0.165.0 depends on starlette>=1.6.0 and you require "
        "starlette==0.40.0, we can conclude that your requirements and fastapi>=0.165.0 are "
        "incompatible.\n         And because you require fastapi==0.165.0, we can conclude that "
        "your requirements are unsatisfiable.",
        "REQUIREMENTS_CONFLICT",
        "relax",
    ),
    "python too old": (
        1,
        f"{UNSOLVABLE}Because the current Python version (3.9.18) does not satisfy Python>=3.11 and "
        "fastapi==0.165.0 depends on Python>=3.11, we can conclude that fastapi==0.165.0 cannot be "
        "used.\n         And because only fastapi<=0.165.0 is available and you require "
        "fastapi==0.165.0, we can conclude that your requirements are unsatisfiable.",
        "REQUIREMENTS_CONFLICT",
        'requires-python = ">=3.11"',
    ),
    "only a source distribution": (
        1,
        f"{UNSOLVABLE}Because all versions of docopt have no usable wheels and you require docopt, we "
        "can conclude that your requirements are unsatisfiable.\n\nhint: Wheels are required for "
        "`docopt` because building from source is disabled for all packages (i.e., with "
        "`--no-build`)",
        "INSTALL_FAILED",
        "wheel",
    ),
    "other platforms": (
        1,
        f"{UNSOLVABLE}Because pywin32<=302 has no wheels with a matching Python ABI tag (e.g., "
        "`cp311`) and only the following versions of pywin32 are available:\n             "
        "pywin32<=302\n             pywin32>=303\n         we can conclude that pywin32<303 cannot "
        "be used.",
        "INSTALL_FAILED",
        "wheel",
    ),
    "connection refused": (
        2,
        "error: Failed to fetch: http://127.0.0.1:9/simple/idna/\n  cause: error sending request for "
        "url (http://127.0.0.1:9/simple/idna/)\n  cause: client error (Connect)\n  cause: tcp "
        "connect error\n  cause: Connection refused (os error 111)",
        "INDEX_UNREACHABLE",
        "again",
    ),
    "unknown host": (
        2,
        "error: Failed to fetch: http://no.such.host.invalid/simple/idna/\n  cause: error sending "
        "request for url (http://no.such.host.invalid/simple/idna/)\n  cause: client error "
        "(Connect)\n  cause: dns error\n  cause: error resolving DNS\n  cause: failed to lookup "
        "address information: Name or service not known",
        "INDEX_UNREACHABLE",
        "again",
    ),
    "server error": (
        2,
        "error: Failed to fetch: http://127.0.0.1:44489/simple/idna/\n  cause: HTTP status server "
        "error (500 Internal Server Error) for url (http://127.0.0.1:44489/simple/idna/)",
        "INDEX_UNREACHABLE",
        "again",
    ),
    "connection closed": (
        2,
        "error: Failed to fetch: http://127.0.0.1:37617/simple/idna/\n  cause: error sending request "
        "for url (http://127.0.0.1:37617/simple/idna/)\n  cause: client error (SendRequest)\n  "
        "cause: connection closed before message completed",
        "INDEX_UNREACHABLE",
        "again",
    ),
    "unauthorized": (
        1,
        f"{UNSOLVABLE}Because idna was not found in the package registry and you require idna, we can "
        "conclude that your requirements are unsatisfiable.\n\nhint: An index URL "
        "(http://127.0.0.1:32785/simple) could not be queried due to a lack of valid authentication "
        "credentials (401 Unauthorized)",
        "INSTALL_FAILED",
        "credentials",
    ),
    "forbidden": (
        1,
        f"{UNSOLVABLE}Because idna was not found in the package registry and you require idna, we can "
        "conclude that your requirements are unsatisfiable.\n\nhint: An index "
        "(http://127.0.0.1:39751/simple) returned a 403 Forbidden error. Check that the index URL is "
        "correct and the credentials are valid.",
        "INSTALL_FAILED",
        "credentials",
    ),
    "wrong hash": (
        1,
        "Using Python 3.12.1 environment at: env\nResolved 1 package in 29ms\nerror: Failed to "
        "download `six==1.17.0`\n  cause: Hash mismatch for `six==1.17.0`\n\n         Expected:\n"
        "           sha256:00\n\n         Computed:\n           sha256:47",
        "INSTALL_FAILED",
        "hashes",
    ),
    "wrong option": (
        2,
        "error: invalid value 'yesterday-ish' for '--exclude-newer <EXCLUDE_NEWER>': `yesterday-ish` "
        "could not be parsed as a valid exclude-newer value",
        "SCRIPT_METADATA",
        "exclude-newer",
    ),
    "killed": (-9, "", "INSTALL_FAILED", "memory"),
    "unheard of": (2, "error: something new", "INSTALL_FAILED", "message"),
}


@pytest.mark.parametrize("case", OUTPUT)
def test_what_uv_says(case: str) -> None:
    code, text, reason, fix = OUTPUT[case]
    failure = classify(code, text.split("\n"))
    assert failure.reason == reason, failure.message
    assert fix in failure.fix
    assert failure.exit_code == code
    assert failure.message
    assert not failure.message.startswith(("error:", "Using", "Resolved"))


def test_uvs_own_message_is_kept() -> None:
    code, text, *_ = OUTPUT["conflict through a dependency"]
    said = classify(code, text.split("\n")).message
    assert "fastapi>=0.165.0 depends on starlette>=1.6.0" in said


def test_credentials_are_not_told() -> None:
    assert redacted("at http://user:secret@localhost/simple") == "at http://****@localhost/simple"
