"""A handler that streams: each piece that it yields leaves at once. `?from=3&every=0.2`."""

import asyncio


async def handler(event, ctx):
    query = event["query"]
    every = float(query.get("every", "0.2"))
    for left in range(int(query.get("from", "3")), 0, -1):
        yield f"{left}\n"
        await asyncio.sleep(every)
    yield "liftoff\n"
