# /// script
# requires-python = ">=3.11"
# dependencies = ["starlette>=0.40", "uvicorn>=0.30", "websockets>=13"]
#
# [tool.mayfly]
# name = "live"
# health = "/up"
# ///
"""A second, different program on the same port 8000: JSON, a WebSocket echo, server-sent events."""

import asyncio
import itertools

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


async def up(request: Request) -> PlainTextResponse:
    return PlainTextResponse("up\n")


async def index(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse(
        {
            "app": "live",
            "method": request.method,
            "raw_path": request.scope["raw_path"].decode("latin-1"),
            "raw_query": request.scope["query_string"].decode("latin-1"),
            "headers": dict(request.headers),
            "body": body.decode(errors="replace"),
        }
    )


async def events(request: Request) -> StreamingResponse:
    """One event every `?every=` seconds, for as long as somebody listens."""
    every = float(request.query_params.get("every", "0.5"))

    async def ticks():
        for number in itertools.count(1):
            yield f"id: {number}\nevent: tick\ndata: {number}\n\n"
            await asyncio.sleep(every)

    return StreamingResponse(ticks(), media_type="text/event-stream")


async def echo(socket: WebSocket) -> None:
    """Sends back what it gets, text as text and bytes as bytes."""
    await socket.accept()
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") is not None:
                await socket.send_text(message["text"])
            else:
                await socket.send_bytes(message["bytes"])
    except WebSocketDisconnect:
        return


app = Starlette(
    routes=[
        Route("/up", up),
        Route("/events", events),
        WebSocketRoute("/echo", echo),
        Route("/{rest:path}", index, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=8000)
