"""Does once, without a function, what an instance does for its first request.

A forked process copies each page of memory when it first writes to it, and that is a good part
of the time until its first answer. A child that is forked ahead pays for it before it is needed.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from typing import Any

from . import http1, server, status

_CODE = """
import json
import os

def handler(event, ctx):
    return {"path": event["path"], "name": event["query"].get("name"), "time": ctx.deadline}
"""
_REQUEST = (
    b"POST /rehearsal?name=value&other=%20 HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n"
    b"user-agent: rehearsal\r\ncontent-type: application/json\r\ncontent-length: 2\r\n"
    b"connection: close\r\n\r\n{}"
)


def rehearse(directory: str = "/tmp") -> None:
    """Import a handler from `directory` and let it answer one request. Leaves nothing behind."""
    entry = os.path.join(directory, "mayfly_rehearsal.py")
    with open(entry, "w", encoding="ascii") as file:
        file.write(_CODE)
    try:
        handler = server.load_handler(entry)
    finally:
        os.unlink(entry)
        sys.modules.pop("mayfly_rehearsal", None)
        sys.path_importer_cache.pop(directory, None)
    _answer(handler)
    os.environ["MAYFLY_FUNCTION"] = "rehearsal"
    del os.environ["MAYFLY_FUNCTION"]
    gc.collect(0)
    gc.freeze()


def _answer(handler: Any) -> None:
    config = server.Config("", "rehearsal", 1.0, 1, 1 << 20)
    page = os.memfd_create("mayfly-rehearsal")
    os.ftruncate(page, status.page_size(1))
    control, _other = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    caller, accepted = socket.socketpair()
    with control, _other, listener, caller, accepted:
        runner = server.Server(
            config, handler, listener, control, status.StatusPage(page, config.concurrency)
        )
        caller.sendall(_REQUEST)
        runner.serve_connection(http1.Connection(accepted), status.SLOTS)
        if not caller.recv(65536).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("the rehearsal failed")
        runner.close()
    os.close(page)
