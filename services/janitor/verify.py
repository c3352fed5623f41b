"""Looking at the world after a removal: what is still there of these uids, at every owner."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

import grpc
import structlog
from mayfly.v1 import janitor_pb2, reclaimer_pb2

from services.janitor.owners import Inventory, Owner
from services.janitor.receipts import Found

log = structlog.get_logger()


async def look(
    owners: Mapping[str, Owner], receipts: Sequence[janitor_pb2.Receipt]
) -> dict[str, Found]:
    """Ask every owner at the same time; return what was found, by uid."""
    uids = [receipt.uid for receipt in receipts]
    answers = await asyncio.gather(*(_ask(owner, uids) for owner in owners.values()))
    return attribute(dict(zip(owners, answers, strict=True)), receipts)


async def _ask(owner: Owner, uids: Sequence[str]) -> Inventory | None:
    try:
        return await owner.resources(uids)
    except grpc.aio.AioRpcError as error:
        log.warning("owner_cannot_look", owner=owner.name, code=error.code().name)
        return None


def attribute(
    answers: Mapping[str, Inventory | None], receipts: Sequence[janitor_pb2.Receipt]
) -> dict[str, Found]:
    """Return what belongs to which uid; what stays on purpose is no residue.

    `answers` holds each owner's inventory, or None where it could not be asked.
    """
    kept = {r.uid: {(k.type, k.id) for k in r.kept} for r in receipts}
    residue: dict[str, defaultdict[str, list[reclaimer_pb2.Resource]]] = {
        uid: defaultdict(list) for uid in kept
    }
    looked_at: list[str] = []
    for owner, inventory in answers.items():
        if inventory is None:
            continue
        looked_at.extend(f"{owner}: {what}" for what in inventory.looked_at)
        for resource in inventory.resources:
            on_purpose = kept.get(resource.uid)
            if on_purpose is not None and (resource.type, resource.id) not in on_purpose:
                residue[resource.uid][owner].append(resource)
    unreachable = [owner for owner, inventory in answers.items() if inventory is None]
    return {uid: Found(residue[uid], looked_at, unreachable) for uid in kept}
