"""All services are rolled out anew under load: no request fails."""

from __future__ import annotations

import asyncio

import pytest

from tests.cluster.release.load import Load
from tests.cluster.release.parts import PARTS
from tests.cluster.release.site import Site
from tests.cluster.release.sources import ECHO, new
from tests.conformance.door import Door, id_of


@pytest.mark.timeout(240)
@pytest.mark.parametrize("parts", [("gateway",), PARTS], ids=["gateway", "all"])
async def test_no_request_fails(site: Site, door: Door, parts: tuple[str, ...]) -> None:
    functions = [await door.ready(handler=new(ECHO)) for _ in range(2)]
    before = await asyncio.to_thread(lambda: _pods(site, parts))
    async with Load({f"{door.url}/f/{id_of(f)}": id_of(f) for f in functions}) as tally:
        await tally.more(20)
        await asyncio.to_thread(site.parts.restart, *parts)
        await tally.more(20)
    after = await asyncio.to_thread(lambda: _pods(site, parts))
    assert not before & after
    tally.check()
    function = await door.ready(handler=new(ECHO))
    assert (await door.call(function)).text == id_of(function)


def _pods(site: Site, parts: tuple[str, ...]) -> set[str]:
    return {pod["metadata"]["name"] for part in parts for pod in site.parts.pods(part)}
