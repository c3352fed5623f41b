"""What a mistake looks like: the parenthesis in line 5 is never closed."""


def handler(event, ctx):
    return (1 + 2
