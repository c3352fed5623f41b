"""HTTP to the API server: where it is, who we are, and one request at a time."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import kubernetes_asyncio.client.rest
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import (
    ConfigException,
    load_incluster_config,  # pyright: ignore[reportUnknownVariableType]
    load_kube_config,  # pyright: ignore[reportUnknownVariableType]
)

from libs.kube.errors import KubeError, Unavailable, error_of

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_rest: Any = kubernetes_asyncio.client.rest
_BROKEN: tuple[type[Exception], ...] = (OSError, TimeoutError, _rest.aiohttp.ClientError)


class Transport:
    """One connection pool. Any number of calls and watches may be under way."""

    def __init__(self, client: ApiClient) -> None:
        self._client: Any = client

    @classmethod
    async def connect(cls, kubeconfig: str = "") -> Transport:
        """By the file at `kubeconfig`, else as the pod's service account, else KUBECONFIG.

        Nothing is sent yet. Raises KubeError where none of these can be read.
        """
        configuration = Configuration()
        try:
            if not kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ:
                load_incluster_config(client_configuration=configuration)
            else:
                await load_kube_config(
                    config_file=kubeconfig or None, client_configuration=configuration
                )
        except (ConfigException, OSError) as error:
            raise KubeError(f"no way to the cluster: {error}") from error
        configuration.connection_pool_maxsize = 0  # each watch and each log holds one
        return cls(ApiClient(configuration))

    async def close(self) -> None:
        await self._client.close()

    async def json(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """One request and its answer. Raises KubeError."""
        timeout = (_CONNECT_SECONDS, _ANSWER_SECONDS)
        async with self._request(method, path, query, body, content_type, timeout) as response:
            return json.loads(await response.read())

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, Any], silence: float
    ) -> AsyncGenerator[AsyncGenerator[bytes]]:
        """A GET whose answer goes on; yields its lines, without their ends.

        silence: seconds without a byte after which it counts as broken; 0: for ever.
        Raises KubeError, at first or later.
        """
        timeout = (_CONNECT_SECONDS, silence or None)
        async with self._request("GET", path, query, None, "", timeout) as response:
            lines = _lines(response)
            try:
                yield lines
            finally:
                await lines.aclose()

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: object,
        content_type: str,
        timeout: tuple[float, float | None],
    ) -> AsyncGenerator[Any]:
        headers = {"Accept": "application/json, */*"}
        if content_type:
            headers["Content-Type"] = content_type
        response: Any = None
        try:
            response = await self._client.call_api(
                path,
                method,
                query_params=list(query.items()) if query else None,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=timeout,
            )
            if not 200 <= response.status <= 299:
                retry_after = response.headers.get("Retry-After")
                raise error_of(response.status, await response.read(), retry_after)
            yield response
        except _BROKEN as error:
            raise Unavailable(f"{method} {path}: {str(error) or type(error).__name__}") from error
        finally:
            if response is not None:
                # Closed where it has not ended: a rest that nobody reads must not be waited for.
                response.close() if not response.content.at_eof() else response.release()


async def _lines(response: Any) -> AsyncGenerator[bytes]:
    rest = bytearray()
    async for chunk in response.content.iter_any():
        rest += chunk
        if b"\n" not in chunk:
            continue
        *lines, last = rest.split(b"\n")
        rest = bytearray(last)
        for line in lines:
            yield bytes(line)
    if rest:
        yield bytes(rest)
