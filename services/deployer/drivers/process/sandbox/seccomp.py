"""The system call filter of every instance, as a classic BPF program.

Three answers: most calls are allowed; what could leave the sandbox is refused; what decides
whom a function may talk to (bind, listen, connect, sendto with an address, shutdown of a
listening socket) is asked of the supervisor, which performs it (seccomp_unotify(2)).

The kernel keeps a bitmap of calls that are allowed whatever their arguments, so the others
cost nothing.
"""

from __future__ import annotations

import struct

_LD, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW = 0x7FFF0000
_NOTIFY = 0x7FC00000
_ERRNO = 0x00050000
_KILL = 0x80000000

_EPERM, _ENOSYS, _EOPNOTSUPP, _EAFNOSUPPORT = 1, 38, 95, 97

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_MSG_FASTOPEN = 0x20000000

# name: (x86_64, aarch64); -1 where the architecture has no such call
_NUMBERS: dict[str, tuple[int, int]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "shutdown": (48, 210),
    "bind": (49, 200),
    "listen": (50, 201),
    "clone": (56, 220),
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "modify_ldt": (154, -1),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "acct": (163, 89),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "sendmmsg": (307, 269),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
}

_ASKED = ("bind", "listen", "connect")
_ABSENT = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
_CHECKED = ("socket", "sendto", "sendmsg", "sendmmsg", "shutdown", "clone")

_Insn = tuple[int, int, int, int]


def _arg(index: int, high: bool = False) -> _Insn:
    return (_LD, 0, 0, 16 + 8 * index + (4 if high else 0))


def _ret(action: int) -> _Insn:
    return (_RET, 0, 0, action)


def _checks() -> dict[str, list[_Insn]]:
    """What is decided by arguments; every block ends in a return on every path."""
    deny = _ret(_ERRNO | _EPERM)
    no_fastopen = _ret(_ERRNO | _EOPNOTSUPP)
    return {
        # A new namespace would give capabilities inside of it.
        "clone": [_arg(0), (_JSET, 0, 1, _NAMESPACES), deny, _ret(_ALLOW)],
        # The family is AF_UNIX (no datagrams: their addresses cannot be checked), AF_INET,
        # AF_INET6 or routing netlink (getifaddrs).
        "socket": [
            _arg(0),
            (_JEQ, 4, 0, 2),
            (_JEQ, 3, 0, 10),
            (_JEQ, 3, 0, 1),
            (_JEQ, 7, 0, 16),
            _ret(_ERRNO | _EAFNOSUPPORT),
            _ret(_ALLOW),
            _arg(1),
            (_AND, 0, 0, 0xF),
            (_JEQ, 0, 1, 2),
            deny,
            _ret(_ALLOW),
            _arg(2),
            (_JEQ, 0, 1, 0),
            _ret(_ALLOW),
            deny,
        ],
        "sendto": [
            _arg(3),
            (_JSET, 0, 1, _MSG_FASTOPEN),
            no_fastopen,
            _arg(4),
            (_JEQ, 1, 0, 0),
            _ret(_NOTIFY),
            _arg(4, high=True),
            (_JEQ, 1, 0, 0),
            _ret(_NOTIFY),
            _ret(_ALLOW),
        ],
        "sendmsg": [_arg(2), (_JSET, 0, 1, _MSG_FASTOPEN), no_fastopen, _ret(_ALLOW)],
        "sendmmsg": [_arg(3), (_JSET, 0, 1, _MSG_FASTOPEN), no_fastopen, _ret(_ALLOW)],
        # SHUT_WR cannot end a listening socket; the others can, for every instance.
        "shutdown": [_arg(1), (_JEQ, 0, 1, 1), _ret(_ALLOW), _ret(_NOTIFY)],
    }


def _search(numbers: list[int], blocks: dict[int, list[_Insn]]) -> list[_Insn]:
    """Binary search for the accumulator among `numbers`; every path returns.

    The kernel runs the program once for each call when it is installed, so length is time.
    """
    if len(numbers) <= 2:
        found: list[_Insn] = []
        for number in numbers:
            block = blocks[number]
            found += [(_JEQ, 0, len(block), number), *block]
        return [*found, _ret(_ALLOW)]
    middle = len(numbers) // 2
    low, high = _search(numbers[:middle], blocks), _search(numbers[middle:], blocks)
    if len(low) > 255:
        raise ValueError("a jump of classic BPF reaches 255 instructions")
    return [(_JGE, len(low), 0, numbers[middle]), *low, *high]


def build_filter(machine: str) -> bytes:
    """The program for `machine` (os.uname().machine), as an array of struct sock_filter.

    Raises KeyError where the architecture is not known.
    """
    column = ("x86_64", "aarch64").index(machine) if machine in _AUDIT_ARCH else -1
    if column < 0:
        raise KeyError(machine)
    program: list[_Insn] = [
        (_LD, 0, 0, 4),
        (_JEQ, 1, 0, _AUDIT_ARCH[machine]),
        _ret(_KILL),
        (_LD, 0, 0, 0),
    ]
    if machine == "x86_64":
        program += [(_JGE, 0, 1, _X32_BIT), _ret(_KILL)]
    checks = _checks()
    blocks: dict[int, list[_Insn]] = {}
    for name, numbers in _NUMBERS.items():
        number = numbers[column]
        if number < 0:
            continue
        if name in _ASKED:
            blocks[number] = [_ret(_NOTIFY)]
        elif name in _ABSENT:
            blocks[number] = [_ret(_ERRNO | _ENOSYS)]
        elif name in _CHECKED:
            blocks[number] = checks[name]
        else:
            blocks[number] = [_ret(_ERRNO | _EPERM)]
    program += _search(sorted(blocks), blocks)
    return b"".join(struct.pack("HBBI", *insn) for insn in program)


def asked_calls(machine: str) -> dict[int, str]:
    """The numbers of the calls that the supervisor is asked about, with their names."""
    column = ("x86_64", "aarch64").index(machine)
    return {_NUMBERS[name][column]: name for name in (*_ASKED, "sendto", "shutdown")}
