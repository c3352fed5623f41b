"""FunctionService: what owners of functions see."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from mayfly.v1 import function_pb2
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.function_pb2 import EndReason, Function, State

from libs.rpc.errors import from_rpc_error

from .conftest import HANDLER, Gateway, Running, eventually
from .test_main_path import ask
from .tiny_builder import TinyBuilder


async def refused(call) -> ErrorReason.ValueType:
    """Return the reason with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value).reason


async def update(deployer: Running, function_id: str, *paths: str, **fields) -> Function:
    request = function_pb2.UpdateFunctionRequest(
        function=Function(name=f"functions/{function_id}", **fields),
        update_mask=FieldMask(paths=paths),
    )
    return (await deployer.functions.UpdateFunction(request)).function


async def renew(deployer: Running, function_id: str, seconds: int | None = None) -> Function:
    ttl = Duration(seconds=seconds) if seconds is not None else None
    request = function_pb2.RenewFunctionRequest(name=f"functions/{function_id}", ttl=ttl)
    return (await deployer.functions.RenewFunction(request)).function


async def test_request_id_creates_once_even_at_the_same_moment(deployer: Running) -> None:
    made = await asyncio.gather(*(deployer.create("", request_id="wish-1") for _ in range(8)))
    assert len({function.uid for function in made}) == 1
    again = await deployer.create("", request_id="wish-1")
    assert again.uid == made[0].uid
    other = await deployer.create("", request_id="wish-2")
    assert other.uid != again.uid


async def test_taken_id_is_refused_and_free_again_after_the_end(deployer: Running) -> None:
    first = await deployer.create("hello")
    reason = await refused(deployer.create("hello"))
    assert reason == ErrorReason.ERROR_REASON_FUNCTION_EXISTS
    await deployer.delete("hello")
    second = await deployer.ready("hello")
    assert second.uid != first.uid


async def test_id_of_an_overdue_function_is_free(deployer: Running) -> None:
    first = await deployer.create("hello", ttl=0.2)

    async def expired() -> bool:
        return (await deployer.get("hello")).state == State.STATE_EXPIRED

    await eventually(expired)
    second = await deployer.create("hello")
    assert second.uid != first.uid
    (outcome,) = await deployer.reclaim(first)
    assert outcome.result == outcome.RESULT_RECLAIMED
    assert outcome.end_reason == "ttl"
    assert (await deployer.get("hello")).uid == second.uid


async def test_failed_build_says_where_and_answers_those_who_wait(deployer: Running) -> None:
    gateway = Gateway(deployer)
    await deployer.create("broken", handler="BUILD FAILS")
    events = await deployer.settle("broken")
    function = await deployer.get("broken")
    assert function.state == State.STATE_FAILED
    assert (function.failure.reason, function.failure.line) == ("SOURCE_SYNTAX", 3)
    kinds = [event.WhichOneof("kind") for event in events]
    assert kinds[-2:] == ["failure", "state"]
    await gateway.until(lambda: "broken" in gateway.routes)
    await gateway.until(lambda: gateway.routes["broken"].state == State.STATE_FAILED)
    assert gateway.routes["broken"].endpoint == ""
    assert gateway.routes["broken"].failure.reason == "SOURCE_SYNTAX"
    held = deployer.driver.functions[function.uid].address
    answer = await ask(held)
    assert b"503" in answer
    assert b'"stage": "build"' in answer
    await gateway.leave()


async def test_failed_deploy_keeps_exit_code_and_log(deployer: Running) -> None:
    await deployer.create("exits", script="DEPLOY FAILS")
    await deployer.settle("exits")
    failure = (await deployer.get("exits")).failure
    assert (failure.reason, failure.exit_code, failure.log_tail) == ("SCRIPT_EXITED", 1, ["boom"])


async def test_update_moves_traffic_when_ready_and_keeps_the_address(deployer: Running) -> None:
    gateway = Gateway(deployer)
    await deployer.ready("hello")
    await gateway.until(lambda: "hello" in gateway.routes)
    endpoint = gateway.routes["hello"].endpoint
    seen = (await deployer.settle("hello"))[-1].sequence
    updated = await update(deployer, "hello", "handler", handler=HANDLER.replace("1", "2"))
    assert (updated.state, updated.revision) == (State.STATE_READY, 2)
    await deployer.settle("hello", after=seen)
    assert (await ask(endpoint)).endswith(b"return 2\n")
    assert gateway.routes["hello"].endpoint == endpoint
    await gateway.leave()


async def test_failed_update_keeps_what_served(deployer: Running) -> None:
    gateway = Gateway(deployer)
    await deployer.ready("hello")
    await gateway.until(lambda: "hello" in gateway.routes)
    endpoint = gateway.routes["hello"].endpoint
    build = (await deployer.get("hello")).build
    for source, reason in (("BUILD FAILS", "SOURCE_SYNTAX"), ("DEPLOY FAILS", "SCRIPT_EXITED")):
        await update(deployer, "hello", "handler", handler=source)
        await deployer.settle("hello")
        function = await deployer.get("hello")
        assert (function.state, function.failure.reason) == (State.STATE_READY, reason)
        assert function.build == build
        assert (await ask(endpoint)).endswith(b"return 1\n")
    await update(deployer, "hello", "handler", handler=HANDLER)
    await deployer.settle("hello")
    assert not (await deployer.get("hello")).HasField("failure")
    await gateway.leave()


async def test_failed_function_is_repaired_by_an_update(deployer: Running) -> None:
    gateway = Gateway(deployer)
    await deployer.create("hello", handler="BUILD FAILS")
    await deployer.settle("hello")
    await update(deployer, "hello", "handler", handler=HANDLER)
    await deployer.settle("hello")
    assert (await deployer.get("hello")).state == State.STATE_READY
    await gateway.until(lambda: gateway.routes["hello"].state == State.STATE_READY)
    assert (await ask(gateway.routes["hello"].endpoint)).endswith(b"return 1\n")
    await gateway.leave()


async def test_update_of_labels_deploys_nothing(deployer: Running) -> None:
    await deployer.ready("hello")
    calls = len(deployer.driver.calls)
    updated = await update(deployer, "hello", "labels", labels={"team": "x"})
    assert dict(updated.labels) == {"team": "x"}
    assert len(deployer.driver.calls) == calls


async def test_renewal_moves_the_deadline_and_the_build_is_held(
    deployer: Running, builder: TinyBuilder
) -> None:
    function = await deployer.ready("hello", ttl=60)
    renewed = await renew(deployer, "hello", 600)
    assert renewed.expire_time.seconds - function.create_time.seconds >= 599
    until = renewed.expire_time.ToMicroseconds() / 1e6
    told = [event.lease for event in await deployer.settle("hello") if event.HasField("lease")]
    assert [lease.expire_time for lease in told] == [renewed.expire_time]
    held = (function.build, function.uid)
    await eventually(lambda: abs(builder.held[held].timestamp() - until) < 0.001)
    (outcome,) = await deployer.reclaim(function)
    assert outcome.result == outcome.RESULT_RENEWED
    assert outcome.renewed_until == renewed.expire_time
    reason = await refused(renew(deployer, "hello", 10**7))
    assert reason == ErrorReason.ERROR_REASON_INVALID_TTL


async def test_renewal_after_the_end_is_refused(deployer: Running) -> None:
    await deployer.ready("hello")
    deleted = await deployer.delete("hello")
    assert deleted.end_reason == EndReason.END_REASON_DELETED
    assert await refused(renew(deployer, "hello")) == ErrorReason.ERROR_REASON_FUNCTION_ENDED
    changed = update(deployer, "hello", "handler", handler=HANDLER)
    assert await refused(changed) == ErrorReason.ERROR_REASON_FUNCTION_ENDED
    assert (await deployer.delete("hello")).end_reason == EndReason.END_REASON_DELETED


async def test_renewal_and_end_race_has_one_winner(deployer: Running) -> None:
    for n in range(20):
        function = await deployer.create(f"race-{n}", ttl=0.05 + n / 400)
        await asyncio.sleep(0.045 + n / 400)
        request = function_pb2.RenewFunctionRequest(name=function.name, ttl=Duration(seconds=60))

        async def renewed(request=request) -> bool:
            try:
                await deployer.functions.RenewFunction(request)
            except grpc.aio.AioRpcError:
                return False
            return True

        won, (outcome,) = await asyncio.gather(renewed(), deployer.reclaim(function))
        if won:
            # It came first, or the lease had not ended when the janitor asked.
            assert outcome.result == outcome.RESULT_RENEWED
        else:
            (outcome,) = await deployer.reclaim(function)
            assert outcome.result == outcome.RESULT_RECLAIMED


async def test_list_pages_and_filters(deployer: Running) -> None:
    for n in range(5):
        await deployer.create(f"f{n}", labels={"team": "x" if n % 2 else "y"})
    for n in range(5):
        await deployer.settle(f"f{n}")
    names: list[str] = []
    token = ""
    while True:
        request = function_pb2.ListFunctionsRequest(page_size=2, page_token=token)
        page = await deployer.functions.ListFunctions(request)
        names += [function.name for function in page.functions]
        if not (token := page.next_page_token):
            break
    assert names == [f"functions/f{n}" for n in reversed(range(5))]

    async def listed(text: str, **more) -> list[str]:
        request = function_pb2.ListFunctionsRequest(filter=text, **more)
        found = (await deployer.functions.ListFunctions(request)).functions
        return [function.name.removeprefix("functions/") for function in found]

    assert await listed("labels.team=x AND state=READY") == ["f3", "f1"]
    assert await listed("labels.team!=x") == ["f4", "f2", "f0"]
    assert await listed("runtime=go") == []
    await deployer.delete("f0")
    assert await listed("labels.team=y") == ["f4", "f2"]
    assert await listed("labels.team=y", show_ended=True) == ["f4", "f2", "f0"]
    reason = await refused(listed("state >"))
    assert reason == ErrorReason.ERROR_REASON_INVALID_FILTER
    broken = function_pb2.ListFunctionsRequest(page_token="abc")
    reason = await refused(deployer.functions.ListFunctions(broken))
    assert reason == ErrorReason.ERROR_REASON_INVALID_PAGE_TOKEN


async def test_quota(start, builder: TinyBuilder) -> None:
    deployer = await start(max_functions=2)
    await deployer.create("a")
    await deployer.create("b")
    assert await refused(deployer.create("c")) == ErrorReason.ERROR_REASON_QUOTA_EXCEEDED


async def test_unknown_function_and_malformed_name(deployer: Running) -> None:
    assert await refused(deployer.get("nope")) == ErrorReason.ERROR_REASON_NOT_FOUND
    request = function_pb2.GetFunctionRequest(name="functions/Not_A_Label")
    reason = await refused(deployer.functions.GetFunction(request))
    assert reason == ErrorReason.ERROR_REASON_INVALID_FIELD


async def test_script_settings_apply_where_the_request_is_silent(
    deployer: Running, builder: TinyBuilder
) -> None:
    builder.settings.port = 9000
    builder.settings.health = "/up"
    builder.settings.ttl.seconds = 1200
    builder.settings.idle_timeout.seconds = 300
    silent = await deployer.ready("silent", script="serve")
    assert (silent.port, silent.health) == (9000, "/up")
    assert silent.ttl.seconds == 1200
    assert silent.expire_time.seconds - silent.create_time.seconds in (1200, 1201)
    assert silent.idle_timeout.seconds == 300
    loud = await deployer.ready("loud", script="serve loudly", port=7000, ttl=30, idle_timeout=20)
    assert (loud.port, loud.ttl.seconds, loud.idle_timeout.seconds) == (7000, 30, 20)
    until = silent.expire_time.ToMicroseconds() / 1e6
    held = (silent.build, silent.uid)
    await eventually(lambda: abs(builder.held[held].timestamp() - until) < 0.001)


async def test_a_renewal_during_the_build_outdoes_the_scripts_own_ttl(
    deployer: Running, builder: TinyBuilder
) -> None:
    builder.settings.ttl.seconds = 1200
    created = await deployer.create("silent", script="serve SLOW")
    await eventually(lambda: bool(builder.builds))
    request = function_pb2.RenewFunctionRequest(name=created.name)
    request.ttl.FromSeconds(4800)
    renewed = (await deployer.functions.RenewFunction(request)).function
    builder.go_on.set()
    await deployer.settle("silent")
    function = await deployer.get("silent")
    assert function.expire_time == renewed.expire_time
    assert function.ttl.seconds == 4800


async def test_handler_does_not_become_a_script(deployer: Running) -> None:
    await deployer.ready("hello")
    await update(deployer, "hello", "script", script="serve")
    await deployer.settle("hello")
    function = await deployer.get("hello")
    assert (function.state, function.failure.reason) == (
        State.STATE_READY, "SOURCE_UNSUPPORTED"
    )  # fmt: skip
