"""The pages at the public port: an index, the OpenAPI document, and health."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from libs.rpc.addresses import Address
from services.gateway import http1
from services.gateway.errors import BAD_REQUEST, NO_SUCH_PAGE, encode
from services.gateway.hold import listen
from services.gateway.splice import Side

JSON = "application/json"


@dataclass(frozen=True)
class Content:
    """A page: its status, type and bytes."""

    code: int
    content_type: str
    body: bytes


Page = Callable[[str], Content]  # given what the client accepts


class Pages:
    """Serves GET of fixed paths on a unix socket."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None

    async def start(self, address: Address) -> None:
        """Listen at a unix socket."""
        self._server = await listen(address, lambda: _Connection(self.answer))

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def answer(self, raw_head: bytes) -> bytes:
        """Return the response to a request."""
        try:
            head = http1.parse_head(raw_head)
        except http1.MalformedHead:
            return http1.refusal(BAD_REQUEST)
        page = self._pages.get(head.path.partition("?")[0])
        if page is None or head.method not in ("GET", "HEAD"):
            return http1.refusal(NO_SUCH_PAGE, method=head.method)
        made = page(head.get("accept"))
        return http1.response(made.code, made.content_type, made.body, method=head.method)


class _Connection(Side):
    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._answer = answer

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        end = self.received.find(http1.END_OF_HEAD)
        if end >= 0:
            self.write(self._answer(bytes(self.received[: end + len(http1.END_OF_HEAD)])))
            self.close()
        elif len(self.received) > http1.MAX_HEAD_BYTES:
            self.write(http1.refusal(BAD_REQUEST))
            self.close()


def index(public_url: str, version: str) -> Page:
    """Return the index: what is where, for a person or a program."""
    document: dict[str, Any] = {
        "name": "mayfly",
        "version": version,
        "functions": f"{public_url}/f/{{function}}/",
        "api": f"{public_url}/v1/functions",
        "openapi": f"{public_url}/openapi.json",
        "health": f"{public_url}/healthz",
    }
    rows = "".join(
        f"<dt>{key}</dt><dd><code>{value}</code></dd>" for key, value in document.items()
    )
    html = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Mayfly</title>"
        "<h1>Mayfly</h1><p>Source code to a live URL that ends by itself.</p>"
        f"<dl>{rows}</dl></html>\n"
    ).encode()

    def page(accept: str) -> Content:
        if "text/html" in accept:
            return Content(200, "text/html; charset=utf-8", html)
        return Content(200, JSON, encode(document))

    return page


def openapi(document: bytes) -> Page:
    """Return the page of an OpenAPI document."""
    return lambda _: Content(200, JSON, document)


def healthz(parts: Callable[[], dict[str, bool]]) -> Page:
    """Return the page that names each part and whether it serves; 503 when one does not."""

    def page(_: str) -> Content:
        now = parts()
        serving = all(now.values())
        states = {name: "SERVING" if up else "NOT_SERVING" for name, up in now.items()}
        document = {"status": "SERVING" if serving else "NOT_SERVING", "parts": states}
        return Content(200 if serving else 503, JSON, encode(document))

    return page
