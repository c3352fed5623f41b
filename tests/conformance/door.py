"""A Mayfly as its users see it: HTTP and gRPC on one public port, and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import httpx

Json = dict[str, Any]
T = TypeVar("T")
ENDED = {"EXPIRED", "RECLAIMING", "RECLAIMED"}
SETTLED = {"READY", "IDLE", "FAILED"} | ENDED


@dataclass(frozen=True)
class Problem:
    """An error as a caller reads it, whichever part of the platform wrote it."""

    http: int
    reason: str
    message: str
    fix: str
    field: str
    stage: str


@dataclass(frozen=True)
class RawResponse:
    """An HTTP/1.1 response read off a socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


def problem_of(response: httpx.Response) -> Problem:
    """Read an error body: `google.rpc.Status` on /v1, `{"error": {...}}` elsewhere."""
    kind = response.headers.get("content-type", "")
    assert kind.startswith("application/json"), (response.status_code, kind, response.text[:300])
    body = response.json()
    if "error" in body:
        error = body["error"]
        return Problem(
            http=response.status_code,
            reason=error.get("reason", ""),
            message=error.get("message", ""),
            fix=error.get("fix", ""),
            field=error.get("field", ""),
            stage=error.get("stage", ""),
        )
    infos = [d for d in body.get("details", []) if d.get("@type", "").endswith("rpc.ErrorInfo")]
    info = infos[0] if infos else {}
    metadata = info.get("metadata", {})
    return Problem(
        http=response.status_code,
        reason=info.get("reason", ""),
        message=body.get("message", ""),
        fix=metadata.get("fix", ""),
        field=metadata.get("field", ""),
        stage=metadata.get("stage", ""),
    )


def id_of(function: Json | str) -> str:
    """Return the id of a function given as itself, as its name or as its id."""
    name = function if isinstance(function, str) else str(function["name"])
    return name.removeprefix("functions/")


def state_of(function: Json) -> str:
    """Return a function's state without the enum's prefix. Example: "READY"."""
    return str(function["state"]).removeprefix("STATE_")


def seconds_of(duration: str) -> float:
    """Return a protobuf duration of JSON in seconds. Example: "1.500s"."""
    assert duration.endswith("s"), duration
    return float(duration[:-1])


def time_of(timestamp: str) -> float:
    """Return an RFC 3339 timestamp, of up to nine digits of a second, in Unix seconds."""
    head, _, fraction = timestamp.rstrip("Z").partition(".")
    moment = datetime.fromisoformat(head + "+00:00").timestamp()
    return moment + (float(f"0.{fraction}") if fraction else 0.0)


async def until(
    probe: Callable[[], Awaitable[T | None]], seconds: float, *, what: str, every: float = 0.02
) -> T:
    """Call `probe` until it returns something true. Raises `AssertionError` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if found := await probe():
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(every)


class Door:
    """The public port of a Mayfly. Functions made through it are deleted by `close`.

    driver: how functions run there; Knative drains a pod that it has scaled down for half a minute,
    and no receipt comes before that.
    """

    def __init__(self, url: str, driver: str = "process") -> None:
        self.url = url.rstrip("/")
        self._receipt_seconds = 60.0 if driver == "knative" else 15.0
        parts = urlsplit(self.url)
        self.host = parts.hostname or "localhost"
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.target = f"{self.host}:{self.port}"
        self.http = httpx.AsyncClient(
            base_url=self.url,
            timeout=60,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        self._mine: set[str] = set()

    async def close(self) -> None:
        """Delete what was made and is still there, and close the connections."""
        for function_id in sorted(self._mine):
            response = await self.http.delete(f"/v1/functions/{function_id}")
            assert response.status_code in (200, 404), response.text
        await self.http.aclose()

    # Functions

    def new_id(self, word: str = "f") -> str:
        """Return a function id that nobody else uses; it is deleted by `close`."""
        function_id = f"{word}-{secrets.token_hex(4)}"
        self._mine.add(function_id)
        return function_id

    async def post(
        self, body: Json, *, function_id: str | None = None, request_id: str = ""
    ) -> httpx.Response:
        """Call CreateFunction and return the response, whatever it is."""
        query = {"function_id": self.new_id() if function_id is None else function_id}
        if request_id:
            query["request_id"] = request_id
        if query["function_id"]:
            self._mine.add(query["function_id"])
        else:
            del query["function_id"]
        response = await self.http.post("/v1/functions", params=query, json=body)
        if response.status_code == 200:
            self._mine.add(id_of(response.json()))
        return response

    async def create(self, *, function_id: str | None = None, **fields: Any) -> Json:
        """Create a function; fields as in JSON. Returns it as it was written."""
        response = await self.post({"ttl": "300s", **fields}, function_id=function_id)
        assert response.status_code == 200, response.text
        return response.json()

    async def ready(self, *, function_id: str | None = None, **fields: Any) -> Json:
        """Create a function and wait until it answers."""
        return await self.settled(await self.create(function_id=function_id, **fields), "READY")

    async def failed(self, **fields: Any) -> Json:
        """Create a function that must fail, and return its `failure`."""
        function = await self.settled(await self.create(**fields), "FAILED")
        return function["failure"]

    async def settled(self, function: Json | str, wanted: str = "") -> Json:
        """Wait until a function is READY, IDLE, FAILED or ended."""
        watch = self.events(function, until_settled="true")
        async with aclosing(watch):
            async for _ in watch:
                pass
        found = await self.get(function)
        assert state_of(found) in SETTLED, found
        if wanted:
            states = {"READY", "IDLE"} if wanted == "READY" else {wanted}
            assert state_of(found) in states, found
        return found

    async def get(self, function: Json | str) -> Json:
        """Return a function as it is now."""
        response = await self.http.get(f"/v1/functions/{id_of(function)}")
        assert response.status_code == 200, response.text
        return response.json()

    async def exists(self, function_id: str) -> bool:
        """Whether a function of this id is, or was, there."""
        response = await self.http.get(f"/v1/functions/{function_id}")
        assert response.status_code in (200, 404), response.text
        return response.status_code == 200

    async def listed(self, **query: Any) -> list[Json]:
        """Return all functions that ListFunctions has, page by page."""
        found: list[Json] = []
        token = ""
        while True:
            response = await self.http.get(
                "/v1/functions", params={**query, "page_size": 1000, "page_token": token}
            )
            assert response.status_code == 200, response.text
            page = response.json()
            found += page.get("functions", [])
            token = page.get("nextPageToken", "")
            if not token:
                return found

    async def renew(self, function: Json | str, ttl: str = "") -> httpx.Response:
        """Call RenewFunction."""
        return await self.http.post(
            f"/v1/functions/{id_of(function)}:renew", json={"ttl": ttl} if ttl else {}
        )

    async def delete(self, function: Json | str) -> Json:
        """Call DeleteFunction."""
        response = await self.http.delete(f"/v1/functions/{id_of(function)}")
        assert response.status_code == 200, response.text
        return response.json()

    async def update(self, function: Json | str, **fields: Any) -> httpx.Response:
        """Call UpdateFunction with the given fields."""
        return await self.http.patch(f"/v1/functions/{id_of(function)}", json=fields)

    # Calls

    async def call(
        self, function: Json | str, path: str = "", method: str = "GET", **options: Any
    ) -> httpx.Response:
        """Send a request to a function; `path` begins with "/" or "?"."""
        return await self.http.request(method, f"/f/{id_of(function)}{path}", **options)

    async def raw(self, head: bytes, body: bytes = b"") -> RawResponse:
        """Send an HTTP/1.1 request byte for byte (`head` without its last empty line)."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            lines = head.replace(b"\n", b"\r\n") if b"\r\n" not in head else head
            writer.write(lines + b"\r\nConnection: close\r\n\r\n" + body)
            await writer.drain()
            answer = await asyncio.wait_for(reader.read(), 30)
        finally:
            writer.close()
        top, _, rest = answer.partition(b"\r\n\r\n")
        first, *fields = top.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in fields)}
        if headers.get("transfer-encoding") == "chunked":
            rest = _unchunked(rest)
        return RawResponse(int(first.split()[1]), headers, rest)

    # Streams

    @asynccontextmanager
    async def stream(self, path: str, **query: Any) -> AsyncGenerator[AsyncGenerator[Json]]:
        """Open a server stream of /v1; yields its messages."""
        async with self.http.stream(
            "GET",
            path,
            params=query,
            headers={"accept": "text/event-stream"},
            # A build in a pod of its own may have nothing to say for long.
            timeout=httpx.Timeout(60, read=300),
        ) as response:
            if response.status_code != 200:
                await response.aread()
                raise AssertionError(f"{response.status_code} {response.text}")
            messages = _messages(response)
            async with aclosing(messages):
                yield messages

    async def events(self, function: Json | str, **query: Any) -> AsyncGenerator[Json]:
        """Yield a function's events from WatchFunction."""
        async with self.stream(f"/v1/functions/{id_of(function)}:watch", **query) as messages:
            async for message in messages:
                assert "error" not in message, message
                yield message["event"]

    async def log_lines(self, function: Json | str, **query: Any) -> list[str]:
        """Return the last log lines, at most 1000, without waiting for new ones."""
        query = {"tail": 1000, **query}
        async with self.stream(f"/v1/functions/{id_of(function)}:logs", **query) as messages:
            return [m["log"].get("text", "") async for m in messages]

    async def log_holding(self, function: Json | str, pattern: str, seconds: float = 10) -> str:
        """Wait until the logs match a regular expression; returns all lines then."""

        async def probe() -> str | None:
            text = "\n".join(await self.log_lines(function))
            return text if re.search(pattern, text) else None

        try:
            return await until(probe, seconds, what=f"/{pattern}/ in the logs", every=0.1)
        except AssertionError as error:
            lines = await self.log_lines(function)
            raise AssertionError(f"{error}; the logs are {lines}") from error

    async def receipt(self, function: Json | str, seconds: float = 0) -> Json:
        """Wait for the receipt of a function that has ended, `seconds` or as long as it takes."""
        uid = function.get("uid", "") if isinstance(function, dict) else ""

        async def probe() -> Json | None:
            response = await self.http.get(f"/v1/receipts/{id_of(function)}")
            assert response.status_code in (200, 404), response.text
            if response.status_code == 404:
                return None
            receipt: Json = response.json()
            return receipt if not uid or receipt["uid"] == uid else None

        what = f"the receipt of {id_of(function)}"
        return await until(probe, seconds or self._receipt_seconds, what=what, every=0.05)

    async def verified_receipt(self, function: Json | str, seconds: float = 0) -> Json:
        """Wait for the receipt that says that nothing is left.

        It is written when the function is gone; what a cluster makes of an object that has just
        been removed is found by a look, and removed and looked for again.
        """

        async def probe() -> Json | None:
            receipt = await self.receipt(function, seconds)
            return receipt if receipt.get("verified") else None

        what = f"the verified receipt of {id_of(function)}"
        return await until(probe, seconds or self._receipt_seconds, what=what, every=0.05)

    # gRPC

    def channel(self) -> grpc.aio.Channel:
        """Return a new gRPC channel to the public port."""
        return grpc.aio.insecure_channel(self.target)


def example(name: str) -> str:
    """Return the text of a file in examples/."""
    return (Path(__file__).resolve().parents[2] / "examples" / name).read_text()


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        if not count:
            break
        whole, body = whole + body[:count], body[count + 2 :]
    return whole


async def _messages(response: httpx.Response) -> AsyncGenerator[Json]:
    async for line in response.aiter_lines():
        text = line.removeprefix("data:").strip()
        if text and not text.startswith(":"):
            yield json.loads(text)
