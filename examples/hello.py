"""A handler: one function, no server. Greets whoever `?name=` says."""


def handler(event, ctx):
    name = event["query"].get("name", "world")
    return {"hello": name, "function": ctx.function_id, "path": event["path"]}
