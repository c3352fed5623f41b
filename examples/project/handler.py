# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""A project of several files: the handler imports a module of its own and reads a file beside it."""

from pathlib import Path

from rhymes import ending

WORDS = (Path(__file__).parent / "words.txt").read_text().split()


def handler(event, ctx):
    word = event["query"].get("word", "mayfly")
    return {"word": word, "rhymes": [w for w in WORDS if w != word and ending(w) == ending(word)]}
