"""Which TCP connections are open, for programs that cannot be asked."""

from __future__ import annotations

from dataclasses import dataclass

_ESTABLISHED, _CLOSE_WAIT = "01", "08"


@dataclass
class Count:
    """Of one local port. open: all, those that nobody has accepted yet included."""

    open: int = 0
    accepted: int = 0


def parse_table(text: str) -> dict[int, Count]:
    """Counts by local port out of /proc/net/tcp or tcp6 (see proc_net_tcp)."""
    counts: dict[int, Count] = {}
    for line in text.splitlines()[1:]:
        fields = line.split(maxsplit=10)
        if len(fields) < 10 or fields[3] not in (_ESTABLISHED, _CLOSE_WAIT):
            continue
        count = counts.setdefault(int(fields[1].rpartition(":")[2], 16), Count())
        count.open += 1
        # A connection in the accept queue belongs to no file yet.
        count.accepted += fields[9] != "0"
    return counts


def read_table() -> dict[int, Count]:
    total: dict[int, Count] = {}
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(name, encoding="ascii") as file:
                table = parse_table(file.read())
        except FileNotFoundError:
            continue  # no IPv6 here
        for port, count in table.items():
            sum_ = total.setdefault(port, Count())
            sum_.open += count.open
            sum_.accepted += count.accepted
    return total
