"""Asks an instance whether it answers, sooner than the kubelet does, which asks once a second."""

from __future__ import annotations

import asyncio
import contextlib

from services.deployer.drivers.deployment.pods import Question

_TRY_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1


async def until_answers(question: Question, seconds: float) -> bool:
    """Ask again and again; False: it did not answer in `seconds`."""
    pause = _FIRST_PAUSE
    try:
        async with asyncio.timeout(seconds):
            while not await answers(question):
                await asyncio.sleep(pause)
                pause = min(pause * 1.3, _LONGEST_PAUSE)
    except TimeoutError:
        return False
    return True


async def answers(question: Question) -> bool:
    """Ask once: whether the port accepts, and the path, where there is one, answers 2xx or 3xx."""
    try:
        async with asyncio.timeout(_TRY_SECONDS):
            reader, writer = await asyncio.open_connection(question.address, question.port)
            try:
                return not question.path or await _is_good(reader, writer, question)
            finally:
                writer.close()
                with contextlib.suppress(OSError):  # the other side was first
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False


async def _is_good(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: Question
) -> bool:
    lines = [f"GET {question.path} HTTP/1.1", f"host: {question.address}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in question.headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    words = (await reader.readline()).split()
    return len(words) > 1 and words[1].isdigit() and 200 <= int(words[1]) < 400
