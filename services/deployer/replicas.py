"""What other replicas wrote, by PostgreSQL's notifications."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from libs.store import Store, StoreUnavailable
from services.deployer.lookup import Lookup
from services.deployer.notifications import Restoration
from services.deployer.rows import FunctionRow
from services.deployer.wakeups import Wakeups

log = structlog.get_logger()

CHANNEL = "mayfly_functions"
_EVENTS_ONLY = "e"


async def follow(
    store: Store,
    replica: str,
    lookup: Lookup,
    restoration: Restoration,
    wakeups: Wakeups,
    on_rows: Callable[[Sequence[FunctionRow]], None],
    look: Callable[[], None],
) -> None:
    """Take in what others wrote, without end.

    A payload is the writer, "r" where a route or deadline may have changed or "e" where there are
    only new events, and the uids, separated by commas.
    """
    async for channel, payload in store.listen(CHANNEL):
        try:
            if not channel:
                # What was notified while the connection was away is not known: read all.
                async for rows in restoration.pages():
                    on_rows(rows)
                wakeups.wake_all()
                look()
                continue
            writer, kind, uids = payload.split(" ", 2)
            if writer == replica:
                continue
            listed = uids.split(",")
            if kind != _EVENTS_ONLY:
                on_rows(await lookup.by_uids(listed))
            wakeups.wake(listed)
        except StoreUnavailable as error:
            log.warning("notification_lost", error=str(error))
