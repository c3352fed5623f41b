"""What clients were promised before the blow, and whether it holds afterwards."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from dataclasses import dataclass, field

import httpx

from tests.conformance.door import ENDED, Door, Json, problem_of, state_of, time_of, until

HANDLER = "def handler(event, ctx):\n    return {'id': ctx.function_id}\n"
SCRIPT = (
    "# /// script\n# dependencies = []\n# ///\n"
    "import http.server, json, os\n"
    "class Server(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        body = json.dumps({'id': os.environ['MAYFLY_FUNCTION']}).encode()\n"
    "        self.send_response(200)\n"
    "        self.send_header('content-length', str(len(body)))\n"
    "        self.end_headers()\n"
    "        self.wfile.write(body)\n"
    "http.server.ThreadingHTTPServer(('0.0.0.0', 8000), Server).serve_forever()\n"
)
# A lease that is about to end is neither live nor ended for a client whose clock reads otherwise.
MARGIN = 2.0
UNKNOWN = -1.0
RECLAIM_SECONDS = 30.0
ANSWER_SECONDS = 30.0


@dataclass
class Promise:
    """One function as its client knows it."""

    function_id: str
    request_id: str
    body: Json
    uid: str = ""
    # The deadlines it may have; UNKNOWN among them while a renewal was not answered.
    expires: set[float] = field(default_factory=set[float])
    renewing: bool = False
    unsure: bool = False
    """A renewal was cut off: whether it took effect, and when, nobody was told."""
    delete_sent: bool = False
    deleted: bool = False
    settled: bool = False

    @property
    def is_known(self) -> bool:
        """Whether its creation was answered."""
        return bool(self.uid)


class Ledger:
    """Keeps promises, makes new ones under way, and holds the platform to all of them."""

    def __init__(
        self, door: Door, rng: random.Random, uids: set[str], *, held_beyond_the_end: bool = False
    ) -> None:
        """held_beyond_the_end: calls that wait for an instance of a function that ends meanwhile
        go on waiting until their own time is over, as on Knative (docs/kubernetes.md)."""
        self._door = door
        self._held_beyond_the_end = held_beyond_the_end
        self._rng = rng
        self._uids = uids
        self.promises: list[Promise] = []
        self.others: set[str] = set()
        """Ids of functions that somebody else has made meanwhile."""
        self.calls = 0

    # Under way

    async def work(self) -> None:
        """Create, call, renew and delete until cancelled; errors are what the blow may cause."""
        while True:
            living = [p for p in self.promises if p.is_known and not p.delete_sent]
            deed = self._rng.random()
            try:
                if deed < 0.35 and len(living) < 12:
                    await self._create(self._new())
                elif deed < 0.75 and living:
                    self.calls += 1
                    await self._door.call(self._rng.choice(living).function_id, timeout=20)
                elif deed < 0.85 and living:
                    await self._renew(self._rng.choice(living))
                elif living and len(living) > 4:
                    await self._delete(self._rng.choice(living))
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.01)

    def _new(self) -> Promise:
        ttl = self._rng.choice(["1s", "2s", "4s", "600s", "600s", "600s"])
        kind = self._rng.choice(["handler", "handler", "script"])
        # A new text now and then, so that there is something to build.
        mark = f"# {self._rng.randrange(6)}\n"
        source = {"handler": HANDLER + mark} if kind == "handler" else {"script": SCRIPT + mark}
        body: Json = {"ttl": ttl, **source}
        if self._rng.random() < 0.2:
            body["idleTimeout"] = "300s"
        token = secrets.token_hex(4)
        promise = Promise(f"k-{token}", f"wish-{token}", body)
        self.promises.append(promise)
        return promise

    async def _create(self, promise: Promise) -> None:
        response = await self._door.post(
            promise.body, function_id=promise.function_id, request_id=promise.request_id
        )
        if response.status_code == 200:
            self._learn(promise, response.json())
        else:
            assert response.status_code >= 500, response.text

    async def _renew(self, promise: Promise) -> None:
        if promise.renewing:
            return
        promise.renewing = True
        # Until it is answered, both deadlines are possible.
        promise.expires.add(UNKNOWN)
        try:
            ttl = self._rng.choice([60, 600])
            response = await self._door.renew(promise.function_id, f"{ttl}s")
        except BaseException:
            promise.unsure = True
            raise
        finally:
            promise.renewing = False
        if response.status_code == 200:
            promise.expires = {time_of(response.json()["expireTime"])}
        elif response.status_code < 500:
            promise.expires.discard(UNKNOWN)
        else:
            promise.unsure = True
        if promise.unsure:
            # One that was cut off may still be on its way, and take effect after this one.
            promise.expires.add(UNKNOWN)

    async def _delete(self, promise: Promise) -> None:
        promise.delete_sent = True
        response = await self._door.http.delete(f"/v1/functions/{promise.function_id}")
        promise.deleted = response.status_code == 200

    def _learn(self, promise: Promise, function: Json) -> None:
        promise.uid = function["uid"]
        promise.expires = {time_of(function["expireTime"])}
        self._uids.add(promise.uid)

    # Afterwards

    async def check(self) -> None:
        """Hold the platform to every promise. Raises `AssertionError` naming the first broken."""
        await self._finish_what_was_cut()
        await asyncio.gather(*(self._check(p) for p in self.promises if not p.settled))
        listed = {f["name"].removeprefix("functions/") for f in await self._door.listed()}
        strangers = listed - {p.function_id for p in self.promises} - self.others
        assert not strangers, f"functions that nobody created: {strangers}"

    async def _finish_what_was_cut(self) -> None:
        for promise in self.promises:
            if not promise.is_known:
                # The same wish again: made before the blow or not, it is the same function.
                await self._create(promise)
                assert promise.is_known, f"{promise.function_id} cannot be created again"
            if promise.delete_sent and not promise.deleted:
                await self._delete(promise)
                assert promise.deleted, f"{promise.function_id} cannot be deleted"

    async def _check(self, promise: Promise) -> None:
        function = await self._door.get(promise.function_id)
        assert function["uid"] == promise.uid, (function, promise)
        expire = time_of(function["expireTime"])
        if not promise.deleted:
            if UNKNOWN in promise.expires:
                promise.expires = {expire}
            if expire not in promise.expires:
                told = f"it ends at {expire}, not at {promise.expires}"
                raise AssertionError(f"{told}\n{await self._story(promise)}")
        if promise.deleted or expire < time.time() - 0.3:
            await self._check_ended(promise)
        elif expire > time.time() + MARGIN:
            await self._check_living(promise, function)

    async def _check_ended(self, promise: Promise) -> None:
        began = time.time()
        answer = await self._door.call(promise.function_id)
        if answer.status_code != 404:
            told = f"called at {began}: {answer.status_code} {answer.text}"
            raise AssertionError(f"{told}\n{await self._story(promise)}")
        assert problem_of(answer).message

        async def reclaimed() -> bool:
            found = await self._door.get(promise.function_id)
            return state_of(found) == "RECLAIMED"

        what = f"{promise.function_id} reclaimed"
        try:
            await until(reclaimed, RECLAIM_SECONDS, what=what, every=0.1)
        except AssertionError as error:
            error.add_note(await self._story(promise))
            raise
        named = {"name": f"functions/{promise.function_id}", "uid": promise.uid}
        await self._door.verified_receipt(named, RECLAIM_SECONDS)
        promise.settled = True

    async def _check_living(self, promise: Promise, function: Json) -> None:
        assert state_of(function) not in ENDED, function

        async def answers() -> bool:
            try:
                answer = await self._door.call(promise.function_id, timeout=ANSWER_SECONDS)
            except httpx.ReadTimeout:
                if self._held_beyond_the_end and time.time() > time_of(function["expireTime"]):
                    return True
                raise
            if answer.status_code == 200:
                assert answer.json() == {"id": promise.function_id}
                return True
            if answer.status_code == 404 and time.time() > time_of(function["expireTime"]) - 0.3:
                return True  # its lease ended while it was waited for
            # What was in flight when its instance died is told so; the next one is served.
            assert answer.status_code in {502, 503, 504}, (answer.status_code, answer.text)
            return False

        what = f"{promise.function_id} answers"
        try:
            await until(answers, ANSWER_SECONDS, what=what, every=0.2)
        except (AssertionError, httpx.TransportError) as error:
            error.add_note(await self._story(promise))
            raise

    async def _story(self, promise: Promise) -> str:
        """What the platform says of a function, for a failed assertion."""
        events: list[Json] = []
        try:
            async with asyncio.timeout(2):
                async for event in self._door.events(promise.function_id):
                    events.append(event)
        except TimeoutError:
            pass
        status = await self._door.http.get("/v1/janitor:status")
        function = await self._door.get(promise.function_id)
        told = "\n".join(str(event) for event in events)
        return f"{promise}\n{function}\n{told}\njanitor: {status.text}"

    async def end_all(self) -> None:
        """Delete everything and wait until it is reclaimed."""
        for promise in self.promises:
            if not promise.settled and not promise.deleted:
                await self._delete(promise)
        await self.check()
        unsettled = [p.function_id for p in self.promises if not p.settled]
        assert unsettled == []
