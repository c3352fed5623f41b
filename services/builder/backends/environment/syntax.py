"""Says whether Python source parses, and what its top level binds.

Run in this process and, as a file, by other interpreters (CPython 3.9 or newer, standard library
only): the source may be for a newer Python than the platform's. Nothing of it is executed.
"""

from __future__ import annotations

import ast
import json
import resource
import sys
import warnings
from typing import Any

# A larger source is compiled in a child, so that nobody else waits for it.
MEMORY_BYTES = 2 * 1024 * 1024 * 1024
_NO_FUNCTIONS = (
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Dict,
    ast.Set,
    ast.JoinedStr,
    ast.ListComp,
    ast.DictComp,
    ast.SetComp,
    ast.Compare,
)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BLOCKS = ("body", "handlers", "cases", "orelse", "finalbody")


def examine(source: bytes, filename: str = "source.py") -> dict[str, Any]:
    """Return a dict: {"error": {message, line, column, text}} or {"handler": {...} or None}.

    source: bytes. "handler" has "line", "problem" (why it cannot be called with two arguments, or
    None) and is None when the top level binds no such name.
    """
    if b"\0" in source:
        return {"error": _null_byte(source)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree: Any = compile(source, filename, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
            # What only the compiler finds: `return` outside a function, a misplaced `global`.
            compile(tree, filename, "exec", dont_inherit=True)
    except SyntaxError as error:
        return {
            "error": {
                "message": str(error.msg),
                "line": error.lineno or 0,
                "column": error.offset or 0,
                "text": (error.text or "").rstrip("\r\n"),
            }
        }
    except ValueError as error:
        return {"error": {"message": str(error), "line": 0, "column": 0, "text": ""}}
    except (RecursionError, MemoryError):
        message = "too deeply nested or too large to compile"
        return {"error": {"message": message, "line": 0, "column": 0, "text": ""}}
    return {"error": None, "handler": _find(tree.body, "handler")}


def _null_byte(source: bytes) -> dict[str, Any]:
    before = source[: source.index(b"\0")]
    line = before.count(b"\n") + 1
    column = len(before) - before.rfind(b"\n")
    message = "source code cannot contain null bytes"
    return {"message": message, "line": line, "column": column, "text": ""}


def _find(statements: list[ast.stmt], name: str) -> dict[str, Any] | None:
    """The last binding of `name` by these statements or the blocks among them."""
    found: dict[str, Any] | None = None
    waiting: list[ast.AST] = list(reversed(statements))
    while waiting:
        statement = waiting.pop()
        found = _bound_by(statement, name) or found
        if not isinstance(statement, _SCOPES):
            blocks = [getattr(statement, block, []) for block in _BLOCKS]
            waiting.extend(reversed([inner for block in blocks for inner in block]))
    return found


def _bound_by(statement: ast.AST, name: str) -> dict[str, Any] | None:
    here: dict[str, Any] = {"line": getattr(statement, "lineno", 0), "problem": None}
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        if statement.name != name:
            return None
        here["problem"] = None if statement.decorator_list else _arity_problem(statement.args)
        return here
    if isinstance(statement, ast.ClassDef):
        return here if statement.name == name else None
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        names = [alias.asname or alias.name for alias in statement.names]
        return here if name in names or "*" in names else None
    if isinstance(statement, ast.Assign) and _names(statement.targets, name):
        whole = any(isinstance(target, ast.Name) for target in statement.targets)
        return _assigned(statement.value, here) if whole else here
    if isinstance(statement, ast.AnnAssign) and _names([statement.target], name):
        return _assigned(statement.value, here) if statement.value else None
    if isinstance(statement, (ast.For, ast.AsyncFor)) and _names([statement.target], name):
        return here
    if isinstance(statement, (ast.With, ast.AsyncWith)):
        targets = [item.optional_vars for item in statement.items if item.optional_vars]
        if _names(targets, name):
            return here
    return None


def _names(targets: list[ast.expr], name: str) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == name
        for target in targets
        for node in ast.walk(target)
    )


def _assigned(value: ast.expr, here: dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, _NO_FUNCTIONS):
        here["problem"] = "is not a function"
    elif isinstance(value, ast.Lambda):
        here["problem"] = _arity_problem(value.args)
    return here


def _arity_problem(arguments: ast.arguments) -> str | None:
    positional = arguments.posonlyargs + arguments.args
    required = len(positional) - len(arguments.defaults)
    defaults = arguments.kw_defaults
    keywords = [a.arg for n, a in enumerate(arguments.kwonlyargs) if defaults[n] is None]
    if required > 2:
        return f"needs {required} arguments"
    if len(positional) < 2 and not arguments.vararg:
        return "takes one argument" if positional else "takes no arguments"
    if keywords:
        return f"needs the keyword arguments {', '.join(keywords)}"
    return None


def main() -> None:
    """Examine the file that is named; write the answer as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with open(sys.argv[1], "rb") as file:
        source = file.read()
    sys.stdout.write(json.dumps(examine(source)))


if __name__ == "__main__":
    main()
