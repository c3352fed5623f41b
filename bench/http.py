"""A client that costs little beside what it measures: one kept connection, standard library."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlencode, urlsplit

Json = dict[str, Any]


class BenchFailed(Exception):
    """Something did not answer as it must; figures of such a run would mean nothing."""


class Client:
    """A kept connection to a Mayfly."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.port = parts.port or 80
        self._connection = http.client.HTTPConnection(
            parts.hostname or "127.0.0.1", parts.port, timeout=60
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def request(self, method: str, path: str, body: Json | None = None) -> tuple[int, bytes]:
        """Send a request; returns status and body."""
        content = None if body is None else json.dumps(body).encode()
        headers = {} if content is None else {"content-type": "application/json"}
        self._connection.request(method, path, content, headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def expect(self, method: str, path: str, body: Json | None = None) -> bytes:
        """Send a request that must be answered with 200. Raises `BenchFailed`."""
        status, content = self.request(method, path, body)
        if status != 200:
            raise BenchFailed(f"{method} {path}: {status} {content[:500].decode(errors='replace')}")
        return content

    def create(self, function_id: str, **fields: Any) -> Json:
        """Create a function; fields as in JSON."""
        path = "/v1/functions?" + urlencode({"function_id": function_id})
        return json.loads(self.expect("POST", path, {"ttl": "600s", **fields}))

    def get(self, function_id: str) -> Json:
        """Return a function."""
        return json.loads(self.expect("GET", f"/v1/functions/{function_id}"))

    def delete(self, function_id: str) -> None:
        """Delete a function."""
        self.expect("DELETE", f"/v1/functions/{function_id}")

    def events(self, function_id: str) -> list[Json]:
        """Return a function's events until it settled."""
        path = f"/v1/functions/{function_id}:watch?until_settled=true"
        text = self.expect("GET", path).decode()
        lines = (line.removeprefix("data:").strip() for line in text.splitlines())
        return [json.loads(line)["event"] for line in lines if line]

    def wait_receipt(self, function_id: str, seconds: float = 30) -> Json:
        """Wait until a function is gone. Raises `BenchFailed`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status, content = self.request("GET", f"/v1/receipts/{function_id}")
            if status == 200:
                return json.loads(content)
            time.sleep(0.01)
        raise BenchFailed(f"no receipt of {function_id} within {seconds} s")


def first_200(host: str, port: int, path: str, seconds: float = 60) -> None:
    """Connect again and again until a GET is answered with 200. Raises `BenchFailed`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                return
        except OSError:
            time.sleep(0.0005)
        finally:
            connection.close()
    raise BenchFailed(f"{host}:{port}{path} did not answer within {seconds} s")
