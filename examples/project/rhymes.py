"""When two words rhyme: their last two letters are the same, which is often enough."""


def ending(word: str) -> str:
    return word.lower()[-2:]
