# /// script
# requires-python = ">=3.11"
# dependencies = ["markdown-it-py>=3"]
# ///
"""A handler with requirements: POST Markdown, get HTML back."""

from markdown_it import MarkdownIt

renderer = MarkdownIt()


async def handler(event, ctx):
    source = event["body"] or "# Nothing\nPOST some *Markdown* here."
    return renderer.render(source), 200, {"content-type": "text/html; charset=utf-8"}
