"""Starts a zygote: builds the root that its functions will see, then becomes its interpreter.

Run by the supervisor on the platform's interpreter, with its own package's parent on the path.
"""

from __future__ import annotations

import os
import sys

from . import kernel, rootfs

ZYGOTE_MAIN = (
    "import sys; sys.path.insert(0, '/mayfly'); "
    "from _mayfly_sandbox.zygote import main; main(sys.argv[1:])"
)
# Room in the argument area that an instance writes its own name over.
PADDING = "." * 160


def main(arguments: list[str]) -> None:
    """Arguments: socket fd, interpreter, root to mount on, data directory, marker, runtime,
    size of a /tmp."""
    channel, interpreter, root, data_dir, marker, runtime, scratch = arguments
    fd = int(channel)
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWPID)
    # This process ends; the child is handed to the supervisor, the next subreaper above.
    if os.fork():
        os._exit(0)
    rootfs.make_private()
    builder = rootfs.RootBuilder(root)
    builder.system()
    prefix = os.path.dirname(os.path.dirname(interpreter))
    builder.interpreter(prefix)
    builder.bind(os.path.dirname(os.path.abspath(__file__)), "/mayfly/_mayfly_sandbox")
    builder.bind(runtime, "/mayfly/_mayfly_python")
    builder.file(f"/mayfly/.marker-{marker}")
    builder.mask(data_dir)
    builder.finish(uid=65534)
    os.set_inheritable(fd, True)
    flags = ("-I", "-S", "-B", "-X", "utf8")
    os.execve(
        interpreter,
        [interpreter, *flags, "-c", ZYGOTE_MAIN, str(fd), marker, scratch, PADDING],
        {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    )


if __name__ == "__main__":
    main(sys.argv[1:])
