"""Requests to functions through the gateway for as long as something happens to the platform."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

import httpx

_ENOUGH_SECONDS = 30.0


@dataclass
class Tally:
    """What became of the requests. A failure is a few words with the moment it happened."""

    sent: int = 0
    failures: list[str] = field(default_factory=list[str])

    async def more(self, count: int) -> None:
        """Wait until so many more have been sent."""
        wanted = self.sent + count
        deadline = time.monotonic() + _ENOUGH_SECONDS
        while self.sent < wanted:
            assert time.monotonic() < deadline, f"only {self.sent} of {wanted} requests"
            await asyncio.sleep(0.02)

    def check(self, least: int = 20) -> None:
        """Raise `AssertionError` unless all went well, and there were some."""
        assert not self.failures, f"{len(self.failures)} of {self.sent}: {self.failures[:10]}"
        assert self.sent >= least, f"only {self.sent} requests"


class Load:
    """Sends requests while it is entered. `answers` is what each URL has to answer.

    One client keeps its connection, as browsers do, and one opens a new one for each request.
    """

    def __init__(self, answers: Mapping[str, str], *, pause: float = 0.05) -> None:
        self._answers = dict(answers)
        self._pause = pause
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._begin = 0.0
        self.tally = Tally()

    async def __aenter__(self) -> Tally:
        self._begin = time.monotonic()
        self._tasks = [
            asyncio.create_task(self._run(keep=True)),
            asyncio.create_task(self._run(keep=False)),
        ]
        return self.tally

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        await asyncio.gather(*self._tasks)

    async def _run(self, *, keep: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=None if keep else 0)
        async with httpx.AsyncClient(timeout=30, trust_env=False, limits=limits) as http:
            while not self._ended.is_set():
                for url, wanted in self._answers.items():
                    await self._one(http, url, wanted, "kept" if keep else "new")
                    await asyncio.sleep(self._pause)

    async def _one(self, http: httpx.AsyncClient, url: str, wanted: str, how: str) -> None:
        self.tally.sent += 1
        begin = time.monotonic()
        try:
            answer = await http.get(url)
        except httpx.HTTPError as error:
            self._fail(begin, f"{how} connection: {error!r}")
            return
        if answer.status_code != 200 or answer.text != wanted:
            self._fail(begin, f"{how} connection: {answer.status_code} {answer.text[:200]}")

    def _fail(self, begin: float, what: str) -> None:
        now = time.monotonic()
        self.tally.failures.append(f"at {begin - self._begin:.2f} s, {now - begin:.2f} s: {what}")
