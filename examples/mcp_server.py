# /// script
# requires-python = ">=3.11"
# dependencies = ["mcp>=2"]
# ///
"""An MCP server (streamable HTTP at /mcp) with two tools and a resource."""

import statistics

from mcp.server import MCPServer

server = MCPServer("mayfly-example", instructions="Small sums over lists of numbers.")


@server.tool()
def add(a: float, b: float) -> float:
    """Add two numbers."""
    return a + b


@server.tool()
def summary(numbers: list[float]) -> dict[str, float]:
    """Mean, median and spread of some numbers."""
    return {
        "mean": statistics.fmean(numbers),
        "median": statistics.median(numbers),
        "spread": max(numbers) - min(numbers),
    }


@server.resource("greeting://{name}")
def greeting(name: str) -> str:
    """A greeting for a name."""
    return f"Hello, {name}!"


if __name__ == "__main__":
    # Any host name may lead here (the gateway's, a domain), so it does not insist on localhost.
    server.run("streamable-http", host="0.0.0.0", port=8000)
