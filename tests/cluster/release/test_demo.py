"""A release that brings its own database and bucket, for trying out."""

from __future__ import annotations

from tests.cluster.release.installed import Release
from tests.conformance.door import Door


async def test_a_function_lives_and_ends(demo: Release) -> None:
    door = Door(demo.url)
    function = await door.create(handler="def handler(event, ctx):\n    return 'here'\n", ttl="20s")
    answer = await door.call(function, timeout=60)
    assert (answer.status_code, answer.text.strip('"')) == (200, "here")
    receipt = await door.receipt(function, 60)
    assert receipt["verified"], receipt
    await door.close()
