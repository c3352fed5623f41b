"""Requests to one registry: authentication, errors as types, retries.

https://distribution.github.io/distribution/spec/auth/token/ is where the token flow is from.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urljoin

import aiohttp
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from libs.registry import credentials
from libs.registry.errors import Denied, NotFound, RegistryError, Unreachable, Unsupported

ResultT = TypeVar("ResultT")
Body = bytes | Callable[[], Any]
"""Bytes, or what makes an asynchronous iterator of bytes, anew for each try."""

_PARAMETER = re.compile(r'([a-zA-Z]+)="([^"]*)"')
_CONNECT_SECONDS = 5.0
_SILENCE_SECONDS = 60.0
_AGAIN = frozenset({408, 425, 429})
_ERROR_BYTES = 4096


class Transport:
    """Speaks to one registry. `patience`: seconds for which an unreachable one is tried again."""

    def __init__(
        self,
        host: str,
        *,
        insecure: bool,
        auth: Path | None,
        patience: float,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self._host = host
        self._base = f"{'http' if insecure else 'https'}://{host}"
        self._auth = auth
        self._patience = patience
        self._on_retry = on_retry
        self._authorization: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def host(self) -> str:
        """The registry. Example: "registry.example:5000"."""
        return self._host

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()

    async def retrying(
        self, work: Callable[[], Awaitable[ResultT]], say: Callable[[str], None] | None = None
    ) -> ResultT:
        """Do `work` again, with growing pauses, while the registry cannot be reached."""

        def tell(state: RetryCallState) -> None:
            if say is not None and state.outcome is not None:
                say(f"{state.outcome.exception()}; trying again")

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unreachable),
            wait=wait_exponential_jitter(multiplier=0.2, max=5),
            stop=stop_after_delay(self._patience),
            before_sleep=tell,
            reraise=True,
        )
        return await retrying(work)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        missing: bool = False,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send once; the answer is 2xx (or 404 with `missing`). Raises `RegistryError`.

        `target` is a path or an address that the registry gave; `scope` is what a token is asked
        for. Example: "repository:me/hello:pull,push".
        """
        url = urljoin(self._base, target)
        try:
            response = await self._send(method, url, scope, headers or {}, body)
            if response.status == 401:
                challenge = response.headers.getall("WWW-Authenticate", [])
                said = await _said(response)
                response.release()
                await self._authenticate(challenge, scope, said)
                response = await self._send(method, url, scope, headers or {}, body)
            try:
                if response.status >= 400 and not (missing and response.status == 404):
                    raise _error(self._host, response.status, await _said(response))
                yield response
            finally:
                response.release()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = str(error) or type(error).__name__
            raise Unreachable(f"the registry {self._host} does not answer: {said}") from error

    async def _send(
        self, method: str, url: str, scope: str, headers: Mapping[str, str], body: Body | None
    ) -> aiohttp.ClientResponse:
        sent = dict(headers)
        # Never to another host: an upload may go straight to a storage with its own signature.
        if scope in self._authorization and url.startswith(f"{self._base}/"):
            sent["Authorization"] = self._authorization[scope]
        data = body() if callable(body) else body
        return await self._open().request(method, url, headers=sent, data=data)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
            )
            self._session = aiohttp.ClientSession(
                timeout=timeout, trust_env=True, auto_decompress=False
            )
        return self._session

    async def _authenticate(self, challenges: list[str], scope: str, said: str) -> None:
        login = await asyncio.to_thread(credentials.read, self._auth, self._host)
        for challenge in challenges:
            kind, _, rest = challenge.partition(" ")
            parameters = dict(_PARAMETER.findall(rest))
            if kind.lower() == "bearer" and "realm" in parameters:
                token = await self._token(parameters, scope, login)
                self._authorization[scope] = f"Bearer {token}"
                return
            if kind.lower() == "basic" and login is not None and login.user:
                self._authorization[scope] = _basic(login)
                return
        raise Denied(f"the registry {self._host} wants credentials{': ' if said else ''}{said}")

    async def _token(
        self, challenge: Mapping[str, str], scope: str, login: credentials.Login | None
    ) -> str:
        wanted = {"service": challenge.get("service", ""), "scope": scope}
        realm = challenge["realm"]
        session = self._open()
        if login is not None and login.token:
            form = wanted | {
                "grant_type": "refresh_token",
                "refresh_token": login.token,
                "client_id": "mayfly",
            }
            asking = session.post(realm, data=form)
        else:
            headers = {"Authorization": _basic(login)} if login is not None else {}
            asking = session.get(realm, params=wanted, headers=headers)
        async with asking as response:
            text = await response.text()
            if response.status >= 400:
                raise _error(self._host, response.status, text)
        try:
            answer = cast("dict[str, Any]", json.loads(text))
            return str(answer.get("token") or answer["access_token"])
        except (ValueError, KeyError) as error:
            raise RegistryError(f"{realm} gave no token") from error


def _basic(login: credentials.Login) -> str:
    return "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()


async def _said(response: aiohttp.ClientResponse) -> str:
    """The messages of an error (OCI distribution specification, "Error Codes")."""
    raw = (await response.content.read(_ERROR_BYTES)).decode(errors="replace")
    try:
        errors = cast("list[dict[str, Any]]", json.loads(raw)["errors"])
        return "; ".join(f"{e.get('code', '')}: {e.get('message', '')}" for e in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        return raw.strip()[:300]


def _error(host: str, status: int, said: str) -> RegistryError:
    text = f"the registry {host} answered {status}" + (f": {said}" if said else "")
    if status in _AGAIN or status >= 500:
        return Unreachable(text)
    if status in (401, 403):
        return Denied(text)
    if status == 404:
        return NotFound(text)
    if status == 405 or "UNSUPPORTED" in said:
        return Unsupported(text)
    return RegistryError(text)
