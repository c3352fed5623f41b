"""`python -m services.standalone.check`: does a running Mayfly do what it promises?

A function is made through the public port, called, and deleted, and its receipt is waited for; what
`helm test` runs. Prints a line a step; exits with 1 at the first that fails.
"""

from __future__ import annotations

import secrets
import sys
import time

import httpx
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.rpc.process import load

SOURCE = 'def handler(event, ctx):\n    return {"hello": event["query"].get("name")}\n'
CALL_SECONDS = 240.0
LOOK_SECONDS = 0.2
RECEIPT_SECONDS = 60.0
ENDED_STATUSES = (404, 410)


class Settings(BaseSettings):
    """Which Mayfly."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_")

    check_url: str = Field(description="The gateway's URL.")
    check_insecure: bool = Field(
        default=True,
        description="Whether any certificate is believed: inside a cluster the gateway is reached "
        "by a name that its certificate does not have.",
    )


class CheckFailed(Exception):
    """A step did not come out as it should; the message says which and what came instead."""


def check(client: httpx.Client) -> None:
    """Make, call and delete a function. Raises `CheckFailed`."""
    name = f"check-{secrets.token_hex(4)}"
    began = time.monotonic()

    def say(what: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:7.2f} s  {what}\n")

    body = {"runtime": "python", "handler": SOURCE, "ttl": "600s"}
    created = client.post("/v1/functions", params={"function_id": name}, json=body)
    _expect(created, 200, "the function is made")
    say("made")
    try:
        deadline = time.monotonic() + CALL_SECONDS
        # Requests that come early wait at the gateway, for a bounded time each.
        while True:
            answer = client.get(f"/f/{name}", params={"name": "you"})
            if answer.status_code not in (503, 504) or time.monotonic() > deadline:
                break
            state = client.get(f"/v1/functions/{name}").json().get("state")
            if state == "STATE_FAILED":
                break
        _expect(answer, 200, "the function answers")
        if answer.json() != {"hello": "you"}:
            raise CheckFailed(f"the function answers: {answer.text[:200]}")
        say("answered")
    finally:
        deleted = client.delete(f"/v1/functions/{name}")
    _expect(deleted, 200, "the function is deleted")
    _expect_ended(client.get(f"/f/{name}"))
    say("deleted")
    deadline = time.monotonic() + RECEIPT_SECONDS
    while (receipt := client.get(f"/v1/receipts/{name}")).status_code != 200:
        if time.monotonic() > deadline:
            _expect(receipt, 200, "there is a receipt")
        time.sleep(LOOK_SECONDS)
    say("receipt written")


def _expect(answer: httpx.Response, status: int, what: str) -> None:
    if answer.status_code != status:
        raise CheckFailed(f"{what}: {answer.status_code} {answer.text[:500]}")


def _expect_ended(answer: httpx.Response) -> None:
    if answer.status_code not in ENDED_STATUSES:
        raise CheckFailed(f"it answers after its end: {answer.status_code} {answer.text[:200]}")


def main() -> None:
    """Check, and say how it came out."""
    settings = load(Settings)
    verify = not settings.check_insecure
    with httpx.Client(base_url=settings.check_url, timeout=90, verify=verify) as client:
        try:
            check(client)
        except (CheckFailed, httpx.HTTPError) as error:
            sys.exit(f"failed: {error}")


if __name__ == "__main__":
    main()
