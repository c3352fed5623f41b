"""What the janitor refuses at start, and by which name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def start(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.janitor"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAYFLY_DATABASE_URL", "mysql://x"),
        ("MAYFLY_DEPLOYER_ADDRESS", "nowhere"),
        ("MAYFLY_RECLAIM_BATCH", "0"),
        ("MAYFLY_SWEEP_INTERVAL", "soon"),
        ("MAYFLY_RECEIPT_RETENTION", "0s"),
    ],
)
def test_refuses_a_wrong_setting_by_name(name: str, value: str) -> None:
    settings = {"MAYFLY_DATABASE_URL": "postgresql://x@localhost/y"} | {name: value}
    done = start(**settings)
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [name]
    assert "(it is " in done.stderr
