"""The client for programs that block."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import grpc

from mayfly import requests
from mayfly.errors import MayflyError, NotFound, Unavailable, settled
from mayfly.requests import Length, Options, SourceLike
from mayfly.resources import (
    Event,
    Function,
    JanitorStatus,
    LogLine,
    Receipt,
    Runtime,
    SweepFinding,
    SweepSummary,
    Trace,
    log_line,
    sweep_response,
)
from mayfly.resume import Resumption
from mayfly.v1 import (
    build_pb2,
    build_pb2_grpc,
    function_pb2,
    function_pb2_grpc,
    janitor_pb2,
    janitor_pb2_grpc,
)
from mayfly.wire import DEFAULT_URL, Endpoint, endpoint, is_broken, to_error

OnEvent = Callable[[Event], None]
AnswerT = TypeVar("AnswerT")

PAGE = 200


class Client:
    """A Mayfly, reached over gRPC at its one port. Every method can raise a `MayflyError`.

    `url`: "http://127.0.0.1:8080", "https://...", "host:port" or "unix:/path". `timeout`: seconds
    that a call may take; streams are not bounded. Threads may share a client.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout: float = 60.0) -> None:
        """Raises `ValueError` when `url` is none."""
        self._where: Endpoint = endpoint(url)
        self._timeout = timeout
        options = self._where.options
        if self._where.tls:
            credentials = grpc.ssl_channel_credentials()
            self._channel = grpc.secure_channel(self._where.target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(self._where.target, options)
        self._functions: Any = function_pb2_grpc.FunctionServiceStub(self._channel)
        self._builds: Any = build_pb2_grpc.BuildServiceStub(self._channel)
        self._janitor: Any = janitor_pb2_grpc.JanitorServiceStub(self._channel)

    @property
    def url(self) -> str:
        """Where Mayfly is."""
        return self._where.url

    @property
    def channel(self) -> grpc.Channel:
        """The gRPC channel, for services that this class does not cover."""
        return self._channel

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def deploy(
        self,
        source: SourceLike,
        *,
        wait: bool = True,
        on_event: OnEvent | None = None,
        update: bool = False,
        request_id: str = "",
        **options: Any,
    ) -> Function:
        """Deploy a path, a text of several lines, or a `Source`; return the function.

        With `wait` it is READY on return, and `on_event` has been told of everything on the way;
        without, its URL works already and requests wait. `update` gives a function of that name new
        source instead, if it lives. `options` are the fields of `mayfly.requests.Options`, as
        `ttl="10m"`, `name="hello"`, `env={"K": "V"}`. Raises `FunctionFailed` with stage, reason
        and fix when it cannot be built or started, and `AlreadyExists`.
        """
        read = requests.source_of(source)
        wanted = Options(**options)
        function, after = self._write(read, wanted, update, request_id)
        if not wait:
            return function
        for event in self.watch(function.id, after=after, until_settled=True):
            if on_event:
                on_event(event)
        function = self.get(function.id)
        return settled(function)

    def _write(
        self, source: requests.Source, options: Options, update: bool, request_id: str
    ) -> tuple[Function, int]:
        """Create or update; return the function and the last event before that."""
        name = options.name or source.name
        if update and name and self._lives(name):
            after = self._last_event(name)
            request = requests.update(requests.function_name(name), source, options)
            with self._errors():
                answer = self._functions.UpdateFunction(request, timeout=self._timeout)
            if options.ttl is not None:
                return self.renew(name, options.ttl), after
            return Function.of(answer.function), after
        request = requests.create(source, options, request_id)
        with self._errors():
            answer = self._functions.CreateFunction(request, timeout=self._timeout)
        return Function.of(answer.function), 0

    def _lives(self, name: str) -> bool:
        try:
            return not self.get(name).ended
        except NotFound:
            return False

    def _last_event(self, name: str) -> int:
        """Return the sequence number of the newest event so far."""
        last = 0
        for event in self.watch(name, until_settled=True):
            last = event.sequence
        return last

    def get(self, name: str) -> Function:
        """Return a function, ended ones too while their tombstone is kept. Raises `NotFound`."""
        request = function_pb2.GetFunctionRequest(name=requests.function_name(name))
        with self._errors():
            answer = self._functions.GetFunction(request, timeout=self._timeout)
        return Function.of(answer.function)

    def list(self, *, filter: str = "", show_ended: bool = False) -> Iterator[Function]:
        """Yield functions, newest first, page by page.

        `filter`: conditions joined by AND, as "state=READY AND labels.team=x".
        """
        token = ""
        while True:
            request = function_pb2.ListFunctionsRequest(
                page_size=PAGE, page_token=token, filter=filter, show_ended=show_ended
            )
            with self._errors():
                page = self._functions.ListFunctions(request, timeout=self._timeout)
            yield from map(Function.of, page.functions)
            if not (token := page.next_page_token):
                return

    def renew(self, name: str, ttl: Length | None = None) -> Function:
        """Set a function's deadline to `ttl` from now; by default its own `ttl` again."""
        request = function_pb2.RenewFunctionRequest(name=requests.function_name(name))
        if ttl is not None:
            request.ttl.CopyFrom(requests.length(ttl, "ttl"))
        with self._errors():
            answer = self._functions.RenewFunction(request, timeout=self._timeout)
        return Function.of(answer.function)

    def delete(self, name: str) -> Function:
        """End a function's lease now; it answers no more when this returns."""
        request = function_pb2.DeleteFunctionRequest(name=requests.function_name(name))
        with self._errors():
            answer = self._functions.DeleteFunction(request, timeout=self._timeout)
        return Function.of(answer.function)

    def watch(
        self,
        name: str,
        *,
        after: int = 0,
        until_settled: bool = False,
        patience: float = 60.0,
    ) -> Iterator[Event]:
        """Yield a function's events after the one numbered `after`, live until it has ended.

        With `until_settled`, until it is READY, IDLE, FAILED or ended. A connection that breaks is
        taken up again where it was; `patience` is how many seconds that may take.
        """
        request = function_pb2.WatchFunctionRequest(
            name=requests.function_name(name), after=after, until_settled=until_settled
        )
        resumption = Resumption(patience)
        while True:
            broken: MayflyError | None = None
            try:
                for answer in self._functions.WatchFunction(request):
                    if answer.HasField("error"):
                        broken = _broken_off(answer.error.message)
                        break
                    resumption.progressed()
                    request.after = answer.event.sequence
                    yield Event.of(answer.event)
            except grpc.RpcError as error:
                broken = to_error(error, self._where)
                if not is_broken(error):
                    raise broken from None
            if broken is None:
                return
            pause = resumption.next_pause()
            if pause is None:
                raise broken
            time.sleep(pause)

    def logs(self, name: str, *, tail: int = 0, follow: bool = False) -> Iterator[LogLine]:
        """Yield the last `tail` (0: 100) log lines and, with `follow`, new ones until the end."""
        request = function_pb2.TailLogsRequest(
            name=requests.function_name(name), tail=tail, follow=follow
        )
        last = 0
        resumption = Resumption(60.0 if follow else 0.0)
        while True:
            try:
                for answer in self._functions.TailLogs(request):
                    # A stream taken up again begins with lines that have been seen.
                    if answer.sequence > last or not answer.sequence:
                        last = answer.sequence
                        resumption.progressed()
                        yield log_line(answer)
            except grpc.RpcError as error:
                pause = resumption.next_pause() if is_broken(error) else None
                if pause is None:
                    raise to_error(error, self._where) from None
                request.tail = 1000
                time.sleep(pause)
            else:
                return

    def trace(self, name: str) -> Trace:
        """Return the spans of a function's trace."""
        request = function_pb2.GetTraceRequest(name=requests.function_name(name))
        with self._errors():
            return Trace.of(self._functions.GetTrace(request, timeout=self._timeout))

    def receipt(self, name: str) -> Receipt:
        """Return the receipt of a function that has ended. Raises `NotFound`."""
        request = janitor_pb2.GetReceiptRequest(name=requests.receipt_name(name))
        with self._errors():
            return Receipt.of(self._janitor.GetReceipt(request, timeout=self._timeout).receipt)

    def receipts(self) -> Iterator[Receipt]:
        """Yield receipts, newest first, page by page."""
        token = ""
        while True:
            request = janitor_pb2.ListReceiptsRequest(page_size=PAGE, page_token=token)
            with self._errors():
                page = self._janitor.ListReceipts(request, timeout=self._timeout)
            yield from map(Receipt.of, page.receipts)
            if not (token := page.next_page_token):
                return

    def sweep(self, *, dry_run: bool = True) -> Iterator[SweepFinding | SweepSummary]:
        """Look for what belongs to nothing and remove it unless `dry_run`; the summary is last."""
        with self._errors():
            for answer in self._janitor.Sweep(janitor_pb2.SweepRequest(dry_run=dry_run)):
                yield sweep_response(answer)

    def janitor_status(self) -> JanitorStatus:
        """Return how far the janitor is behind."""
        request = janitor_pb2.GetStatusRequest()
        with self._errors():
            return JanitorStatus.of(self._janitor.GetStatus(request, timeout=self._timeout))

    def runtimes(self) -> list[Runtime]:
        """Return the languages, and whether each can be used here."""
        request = build_pb2.ListRuntimesRequest()
        with self._errors():
            answer = self._builds.ListRuntimes(request, timeout=self._timeout)
        return [Runtime.of(runtime) for runtime in answer.runtimes]

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise to_error(error, self._where) from None


def _broken_off(message: str) -> MayflyError:
    return Unavailable(message or "the stream broke off", fix="try again")
