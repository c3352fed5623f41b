"""The janitor against a real PostgreSQL and real owners over gRPC."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import grpc
import pytest
from mayfly.v1 import janitor_pb2, reclaimer_pb2

from libs.rpc.errors import from_rpc_error
from tests.janitor.conftest import Eventually, Run
from tests.janitor.owner import TestOwner

TRACE = "0af7651916cd43dd8448eb211c80319c"


def receipt(stub: Any, function: str) -> Any:
    async def get() -> janitor_pb2.Receipt:
        request = janitor_pb2.GetReceiptRequest(name=f"receipts/{function}")
        return (await stub.GetReceipt(request)).receipt

    return get


def verified(stub: Any, function: str) -> Any:
    get = receipt(stub, function)

    async def when_verified() -> janitor_pb2.Receipt | None:
        found = await get()
        return found if found.verified else None

    return when_verified


async def status(stub: Any) -> janitor_pb2.GetStatusResponse:
    return await stub.GetStatus(janitor_pb2.GetStatusRequest())


async def sweep(stub: Any, *, dry_run: bool) -> list[janitor_pb2.SweepResponse]:
    return [r async for r in stub.Sweep(janitor_pb2.SweepRequest(dry_run=dry_run))]


async def test_a_lease_that_ends_leaves_a_receipt(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        thing = deployer.put("functions/hello", "u1", 0.3, traceparent=f"00-{TRACE}-{'1' * 16}-01")
        got = await eventually(verified(stub, "hello"))
    assert (got.name, got.resource, got.uid) == ("receipts/hello", "functions/hello", "u1")
    assert got.end_reason == "ttl"
    assert [r.type for r in got.removed] == ["process", "socket"]
    assert [r.type for r in got.kept] == ["environment"]
    assert sorted(got.looked_at) == ["builder: processes (212)", "deployer: processes (212)"]
    assert not got.residue
    assert got.trace_id == TRACE
    assert got.attempts == 1
    assert got.reclaim_time.ToNanoseconds() - thing.expire_ns == got.lag.ToNanoseconds()
    # Woken at the deadline: never before it, and soon after.
    late = deployer.reclaimed_at["u1"] - thing.expire_ns
    assert 0 <= late < 200_000_000


async def test_what_ended_is_reclaimed_at_once(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        deployer.put("functions/hello", "u1", 600)
        await eventually(lambda: _has(stub, deadlines=1))
        deployer.end("u1")
        got = await eventually(verified(stub, "hello"))
        assert got.end_reason == "deleted"
        await eventually(lambda: _has(stub, deadlines=0))


async def test_a_renewal_moves_the_wake_up(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        deployer.put("functions/hello", "u1", 0.5)
        await eventually(lambda: _has(stub, deadlines=1))
        deployer.renew("u1", 600)
        sooner = deployer.put("functions/other", "u2", 0.6)
        await eventually(verified(stub, "other"))
        assert deployer.batches == [["u2"]]
        assert time.time_ns() >= sooner.expire_ns
        now = await status(stub)
        assert (now.deadlines, now.overdue) == (1, 0)
        assert now.next_deadline.ToNanoseconds() == deployer.things["u1"].expire_ns
        assert sorted(now.owners) == ["builder", "deployer"]
        assert now.lag.ToNanoseconds() > 0


async def test_a_renewal_that_the_janitor_missed_is_respected(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        deployer.put("functions/hello", "u1", 0.2)
        await eventually(lambda: _has(stub, deadlines=1))
        deployer.renew("u1", 0.4, tell=False)
        await eventually(verified(stub, "hello"))
        assert deployer.batches == [["u1"], ["u1"]]
        assert (await receipt(stub, "hello")()).attempts == 1


async def test_an_owner_whose_clock_is_behind_is_asked_again(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    deployer.clock_behind_ns = 300_000_000
    async with run_janitor() as stub:
        deployer.put("functions/hello", "u1", 0.05)
        await eventually(verified(stub, "hello"))
    assert 2 <= len(deployer.batches) < 20


async def test_deadlines_that_coincide_share_a_call(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor(reclaim_batch=50) as stub:
        at = time.time() + 0.5
        for n in range(120):
            deployer.put(f"functions/f{n}", f"u{n}", at + n * 1e-5 - time.time())
        await eventually(lambda: _listed(stub, 120))
        listed = await _list(stub)
        assert all(r.verified for r in listed)
        assert sum(len(batch) for batch in deployer.batches) == 120
        assert max(len(batch) for batch in deployer.batches) == 50
        assert len(deployer.batches) <= 5


async def test_removals_that_wait_hold_up_nobody(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    deployer.hold_reclaim = asyncio.Event()
    async with run_janitor(reclaim_calls=2, reclaim_busy="0.05s") as stub:
        for n in range(5):
            deployer.put(f"functions/f{n}", f"u{n}", 0.1)
            # One call each, none of which is answered.
            await eventually(lambda n=n: _true(deployer.reclaimed_at.get(f"u{n}")))
        deployer.hold_reclaim.set()
        for n in range(5):
            await eventually(receipt(stub, f"f{n}"))
    assert deployer.batches[:5] == [[f"u{n}"] for n in range(5)]


async def test_what_cannot_be_removed_is_tried_again(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    deployer.fail["u1"] = 2
    deployer.abort_reclaims = 1
    async with run_janitor(retry_first="10ms") as stub:
        deployer.put("functions/hello", "u1", 0.05, resources=["process", "socket", "directory"])
        got = await eventually(verified(stub, "hello"))
        assert got.attempts == 4
        # What the failed tries had removed is in the receipt as well.
        assert [r.type for r in got.removed] == ["socket", "directory"] or len(got.removed) >= 2
        assert (await status(stub)).overdue == 0


async def test_residue_is_named_and_removed(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    deployer.residue["u1"] = ["mount"]
    deployer.stubborn.add("u1")
    async with run_janitor(retry_first="10ms", retry_most="50ms") as stub:
        deployer.put("functions/hello", "u1", 0.05)
        got = await eventually(receipt(stub, "hello"))
        assert not got.verified
        assert [r.type for r in got.residue] == ["mount"]
        deployer.stubborn.clear()
        got = await eventually(verified(stub, "hello"))
        assert not got.residue
        assert deployer.residue["u1"] == []


async def test_an_owner_that_cannot_look_delays_the_verdict(
    run_janitor: Run, deployer: TestOwner, builder: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor(retry_first="10ms", retry_most="50ms") as stub:
        await eventually(lambda: _has(stub, owners=2))
        await builder.stop()
        deployer.put("functions/hello", "u1", 0.05)
        got = await eventually(receipt(stub, "hello"))
        assert not got.verified
        assert "builder: could not be asked" in got.looked_at
        await builder.start()
        assert (await eventually(verified(stub, "hello"))).residue == []


async def test_a_janitor_that_was_away_catches_up(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        deployer.put("functions/a", "u1", 0.3)
        deployer.put("functions/b", "u2", 600)
        await eventually(lambda: _has(stub, deadlines=2))
    await asyncio.sleep(max(0, deployer.things["u1"].expire_ns / 1e9 - time.time()))
    async with run_janitor() as stub:
        await eventually(verified(stub, "a"))
        assert (await status(stub)).deadlines == 1


async def test_an_owner_that_was_away_is_watched_again(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        deployer.put("functions/gone", "u0", 600)
        deployer.put("functions/a", "u1", 600)
        await eventually(lambda: _has(stub, deadlines=2))
        await deployer.stop()
        del deployer.things["u0"]
        deployer.things["u1"].ended = True
        await deployer.start()
        await eventually(verified(stub, "a"))
        # What the owner has no more is forgotten.
        await eventually(lambda: _has(stub, deadlines=0))
    assert [batch for batch in deployer.batches if "u0" in batch] == []


async def test_a_receipt_survives_a_janitor_that_dies_after_the_removal(
    run_janitor: Run, deployer: TestOwner, builder: TestOwner, eventually: Eventually
) -> None:
    deployer.shares = builder.shares = False
    deployer.hold_reclaim = asyncio.Event()
    async with run_janitor():
        deployer.put("functions/hello", "u1", 0.05)
        await eventually(lambda: _true(deployer.reclaimed_at.get("u1")))
        # The owner has removed it; its answer never arrives.
    deployer.hold_reclaim.set()
    async with run_janitor() as stub:
        got = await eventually(verified(stub, "hello"))
        assert got.uid == "u1"


@pytest.mark.parametrize("intention", ["written", "lost"])
async def test_a_receipt_survives_an_owner_that_dies_after_the_removal(
    intention: str,
    run_janitor: Run,
    deployer: TestOwner,
    builder: TestOwner,
    eventually: Eventually,
    database_url: str,
) -> None:
    deployer.shares = builder.shares = False
    deployer.hold_reclaim = asyncio.Event()
    # Long pauses, so that the owner has said what it has before it is asked again.
    async with run_janitor(retry_first="1s", retry_most="1s") as stub:
        deployer.put("functions/hello", "u1", 0.05)
        await eventually(lambda: _true(deployer.reclaimed_at.get("u1")))
        if intention == "lost":
            connection = await asyncpg.connect(database_url)
            await connection.execute("DELETE FROM janitor.receipts")
            await connection.close()
        await deployer.stop()
        deployer.hold_reclaim = None
        await deployer.start()
        got = await eventually(verified(stub, "hello"))
        assert (got.uid, got.attempts) == ("u1", 2)
        await eventually(lambda: _has(stub, deadlines=0))


async def test_two_janitors_write_one_receipt(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually, database_url: str
) -> None:
    async with run_janitor() as one, run_janitor() as two:
        await eventually(lambda: _has(one, owners=2))
        await eventually(lambda: _has(two, owners=2))
        for n in range(40):
            deployer.put(f"functions/f{n}", f"u{n}", 0.3)
        await eventually(lambda: _listed(one, 40))
        for stub in (one, two):
            await eventually(lambda stub=stub: _has(stub, deadlines=0, overdue=0))
            for n in range(40):
                got = await eventually(verified(stub, f"f{n}"))
                assert [r.type for r in got.removed] == ["process", "socket"]
    assert sorted(deployer.reclaimed_at) == sorted(f"u{n}" for n in range(40))
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT verified, payload FROM janitor.receipts")
    await connection.close()
    assert len(rows) == 40
    assert all(row["verified"] and row["payload"] for row in rows)


async def test_a_name_that_is_used_again_keeps_its_new_deadline(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        deployer.put("functions/hello", "old", 600)
        await eventually(lambda: _has(stub, deadlines=1))
        new = deployer.put("functions/hello", "new", 600)
        deployer.end("old")
        got = await eventually(verified(stub, "hello"))
        assert got.uid == "old"

        async def asked_again() -> bool:
            return ["new"] in deployer.batches

        # The removal that was told by name makes the janitor ask about its namesake, and no more.
        await eventually(asked_again)
        now = await eventually(lambda: _has(stub, deadlines=1, overdue=0))
        assert now.next_deadline.ToNanoseconds() == new.expire_ns
        assert "new" in deployer.things


async def test_removal_of_what_does_not_end_any_more_is_forgotten(
    run_janitor: Run, builder: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        builder.put("builds/abc", "abc", 600)
        await eventually(lambda: _has(stub, deadlines=1))
        del builder.things["abc"]
        builder.tell(removals=["builds/abc"])
        await eventually(lambda: _has(stub, deadlines=0))

        async def forgotten() -> bool:
            # Until the owner has been asked whether it is gone, it counts as ending.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await receipt(stub, "abc")()
            error = from_rpc_error(caught.value)
            assert (error.code, error.reason_name) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
            return "never was" in error.message

        await eventually(forgotten)


async def test_receipts_are_paged_newest_first(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        for n in range(5):
            deployer.put(f"functions/f{n}", f"u{n}", 0.05)
            await eventually(verified(stub, f"f{n}"))
        names: list[str] = []
        token = ""
        pages = 0
        while True:
            request = janitor_pb2.ListReceiptsRequest(page_size=2, page_token=token)
            page = await stub.ListReceipts(request)
            names += [r.name for r in page.receipts]
            pages += 1
            token = page.next_page_token
            if not token:
                break
        assert names == [f"receipts/f{n}" for n in (4, 3, 2, 1, 0)]
        assert pages == 3
        for wrong in ("abc", "WzEsMl0=", "e30="):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListReceipts(janitor_pb2.ListReceiptsRequest(page_token=wrong))
            error = from_rpc_error(caught.value)
            assert (error.reason_name, error.field) == ("INVALID_PAGE_TOKEN", "page_token")


async def test_old_receipts_are_dropped(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    async with run_janitor() as stub:
        deployer.put("functions/hello", "u1", 0.05)
        await eventually(verified(stub, "hello"))
    changes = {"receipt_retention": "1ms", "sweep_interval": "50ms"}

    async def gone() -> bool:
        return not await _list(stub)

    async with run_janitor(**changes) as stub:
        await eventually(gone)


async def test_a_sweep_tells_and_removes(run_janitor: Run, deployer: TestOwner) -> None:
    for name in ("/run/x", "busy-1"):
        deployer.orphans[name] = reclaimer_pb2.Resource(type="directory", id=name, orphan=True)
    # An owner that names what is not an orphan does not get it removed.
    deployer.orphans["live"] = reclaimer_pb2.Resource(type="process", id="live", uid="u9")
    async with run_janitor() as stub:
        dry = await sweep(stub, dry_run=True)
        assert sorted(r.finding.resource.id for r in dry[:-1]) == ["/run/x", "busy-1"]
        assert not any(r.finding.removed for r in dry[:-1])
        assert (dry[-1].summary.found, dry[-1].summary.removed) == (2, 0)
        looked_at = list(dry[-1].summary.looked_at)
        assert looked_at == ["builder: processes (212)", "deployer: processes (212)"]
        assert len(deployer.orphans) == 3

        real = await sweep(stub, dry_run=False)
        by_id = {r.finding.resource.id: r.finding for r in real[:-1]}
        assert by_id["/run/x"].removed
        assert (by_id["busy-1"].removed, by_id["busy-1"].error) == (False, "device is busy")
        assert (real[-1].summary.found, real[-1].summary.removed) == (2, 1)
        assert "live" in deployer.orphans
        assert (await status(stub)).HasField("last_sweep_time")


async def test_a_sweep_names_the_owners_it_could_not_ask(
    run_janitor: Run, deployer: TestOwner, builder: TestOwner
) -> None:
    deployer.orphans["/x"] = reclaimer_pb2.Resource(type="directory", id="/x", orphan=True)
    await builder.stop()
    async with run_janitor() as stub:
        responses = await sweep(stub, dry_run=False)
    summary = responses[-1].summary
    assert [r.split(":")[0] for r in summary.unreachable] == ["builder"]
    assert summary.removed == 1


async def test_sweeps_by_itself(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    deployer.orphans["/x"] = reclaimer_pb2.Resource(type="directory", id="/x", orphan=True)
    async with run_janitor(sweep_interval="10m"):
        await eventually(lambda: _true(not deployer.orphans))


async def _true(value: Any) -> Any:
    return value


async def _has(stub: Any, *, owners: int | None = None, **wanted: int) -> Any:
    now = await status(stub)
    if owners is not None and len(now.owners) != owners:
        return None
    return now if all(getattr(now, name) == value for name, value in wanted.items()) else None


async def _list(stub: Any) -> list[janitor_pb2.Receipt]:
    response = await stub.ListReceipts(janitor_pb2.ListReceiptsRequest(page_size=1000))
    return list(response.receipts)


async def _listed(stub: Any, count: int) -> bool:
    return len(await _list(stub)) == count
