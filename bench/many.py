"""Very many functions: adding one more, memory of each, and all of them ending at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc
from google.protobuf.duration_pb2 import Duration
from mayfly.v1 import (
    function_pb2,
    function_pb2_grpc,
    janitor_pb2,
    janitor_pb2_grpc,
)

from bench import processes
from bench.figures import Figure
from bench.http import BenchFailed, Client
from bench.submit import HANDLER

AT_ONCE = 16
SAMPLED = 100
IDLE_SECONDS = 180.0
RECLAIM_SECONDS = 120.0


class Many:
    """Measures with few functions, makes many, and measures again."""

    def __init__(self, client: Client, pid: int, count: int, few: int = 10) -> None:
        self._client, self._pid, self._count, self._few = client, pid, count, few
        self.add_few = Figure(f"one more handler, with {few} known: submit → 200")
        self.add_many = Figure(
            f"one more handler, with {count:,} known: submit → 200", peer=self.add_few, bound=1.2
        )
        self.creations = Figure(f"creations/s, sustained over {count:,}", "1/s")
        self.envoy_memory = Figure("memory an idle function, Envoy", "KiB")
        self.rest_memory = Figure("memory an idle function, everything else", "KiB")
        self.refusal = Figure(f"{count:,} end at once: lag of refusal")
        self.reclaimed = Figure(f"{count:,} end at once: until all have receipts")

    def figures(self) -> list[Figure]:
        """Return all rows."""
        return [
            self.add_few,
            self.add_many,
            self.creations,
            self.envoy_memory,
            self.rest_memory,
            self.refusal,
            self.reclaimed,
        ]

    def run(self, rounds: int) -> None:
        """Take all figures."""
        asyncio.run(self._run(rounds))

    async def _run(self, rounds: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._client.port}") as channel:
            functions = function_pb2_grpc.FunctionServiceStub(channel)
            janitor = janitor_pb2_grpc.JanitorServiceStub(channel)
            few = [f"few-{n}" for n in range(self._few)]
            await _for_all(few, lambda i: _create(functions, i))
            self._add_one_more(self.add_few, rounds, "a")
            await self._until_idle(functions)
            before = self._memory()
            many = [f"many-{n}" for n in range(self._count)]
            began = time.perf_counter()
            step = max(1, self._count // 10)
            for start in range(0, self._count, step):
                part = time.perf_counter()
                chunk = many[start : start + step]
                await _for_all(chunk, lambda i: _create(functions, i))
                self.creations.add(len(chunk) / (time.perf_counter() - part))
            print(f"created in {time.perf_counter() - began:.1f} s", flush=True)
            await self._until_idle(functions)
            after = self._memory()
            for figure, less, more in zip(
                (self.envoy_memory, self.rest_memory), before, after, strict=True
            ):
                figure.add((more - less) / self._count)
            self._add_one_more(self.add_many, rounds, "b")
            await self._end_all(functions, janitor, few + many)

    def _add_one_more(self, figure: Figure, rounds: int, word: str) -> None:
        for number in range(rounds):
            function_id = f"more-{word}{number}"
            began = time.perf_counter()
            self._client.create(function_id, handler=f"{HANDLER}\n# {function_id}\n")
            self._client.expect("GET", f"/f/{function_id}/")
            figure.add((time.perf_counter() - began) * 1000)
            self._client.delete(function_id)

    def _memory(self) -> tuple[float, float]:
        envoys: list[int] = []
        others: list[int] = []
        for pid in processes.descendants(self._pid):
            program = processes.command(pid).partition(" ")[0]
            (envoys if program.endswith("envoy") else others).append(pid)
        return processes.memory_kib(envoys), processes.memory_kib(others)

    async def _until_idle(self, functions: function_pb2_grpc.FunctionServiceAsyncStub) -> None:
        request = function_pb2.ListFunctionsRequest(filter="state=READY", page_size=1)
        deadline = time.monotonic() + IDLE_SECONDS
        while time.monotonic() < deadline:
            if not (await functions.ListFunctions(request)).functions:
                return
            await asyncio.sleep(0.5)
        raise BenchFailed(f"not all functions were idle within {IDLE_SECONDS} s")

    async def _end_all(
        self,
        functions: function_pb2_grpc.FunctionServiceAsyncStub,
        janitor: janitor_pb2_grpc.JanitorServiceAsyncStub,
        ids: Sequence[str],
    ) -> None:
        # Far enough for all renewals to be made and for the sample to be awake.
        moment = time.time() + 10 + len(ids) / 400

        async def renew(function_id: str) -> None:
            left = Duration()
            left.FromNanoseconds(int((moment - time.time()) * 1e9))
            await functions.RenewFunction(
                function_pb2.RenewFunctionRequest(name=f"functions/{function_id}", ttl=left)
            )

        await _for_all(ids, renew)
        if time.time() > moment - 2:
            raise BenchFailed("the renewals took longer than was left")
        sample = random.Random(1).sample(list(ids), min(SAMPLED, len(ids)))
        await asyncio.sleep(max(0.0, moment - time.time() - 1.5))
        lags = await asyncio.gather(*(_refusal(self._client.port, i, moment) for i in sample))
        for lag in lags:
            self.refusal.add(lag * 1000)
        deadline = time.monotonic() + RECLAIM_SECONDS
        status = janitor_pb2.GetStatusRequest()
        receipts: dict[str, float] = {}
        while missing := [i for i in ids if i not in receipts]:
            if time.monotonic() > deadline:
                raise BenchFailed(f"{len(missing)} have no receipt after {RECLAIM_SECONDS} s")
            if not (await janitor.GetStatus(status)).overdue:
                receipts = await _receipts(janitor)
            await asyncio.sleep(0.1)
        latest = max(receipts[function_id] for function_id in ids)
        self.reclaimed.add((latest - moment) * 1000)


async def _create(functions: function_pb2_grpc.FunctionServiceAsyncStub, function_id: str) -> None:
    function = function_pb2.Function(handler=HANDLER, ttl=Duration(seconds=3600))
    await functions.CreateFunction(
        function_pb2.CreateFunctionRequest(function_id=function_id, function=function)
    )


async def _for_all(items: Sequence[str], act: Callable[[str], Awaitable[None]]) -> None:
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await act(item)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def _refusal(port: int, function_id: str, moment: float) -> float:
    """Call until 404; returns how long after `moment` the last answer of the function was begun."""
    request = f"GET /f/{function_id}/ HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            sent = time.time()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.decode("latin-1").lower().splitlines():
                if line.startswith("content-length:"):
                    length = int(line.partition(":")[2])
            if b"chunked" in head.lower():
                await reader.readuntil(b"0\r\n\r\n")
            else:
                await reader.readexactly(length)
            if b" 404 " in head.splitlines()[0]:
                return max(0.0, sent - moment)
            if time.time() > moment + 30:
                raise BenchFailed(f"{function_id} answers 30 s after its end")
            await asyncio.sleep(0.02 if time.time() > moment - 0.2 else 0.2)
    finally:
        writer.close()


async def _receipts(janitor: janitor_pb2_grpc.JanitorServiceAsyncStub) -> dict[str, float]:
    found: dict[str, float] = {}
    token = ""
    while True:
        page = await janitor.ListReceipts(
            janitor_pb2.ListReceiptsRequest(page_size=1000, page_token=token)
        )
        for receipt in page.receipts:
            function_id = receipt.name.removeprefix("receipts/")
            found.setdefault(function_id, receipt.reclaim_time.ToNanoseconds() / 1e9)
        token = page.next_page_token
        if not token:
            return found
