"""PostgreSQL: connections, named queries, notifications, migrations."""

from libs.store.errors import StoreUnavailable, UniqueViolation
from libs.store.store import Connection, Record, Store

__all__ = ["Connection", "Record", "Store", "StoreUnavailable", "UniqueViolation"]
