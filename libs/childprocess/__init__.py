"""Child processes that end with their parent."""

from libs.childprocess.child import Child, spawn

__all__ = ["Child", "spawn"]
