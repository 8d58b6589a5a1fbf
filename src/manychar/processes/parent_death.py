"""The tie between a process and the one that started it: children end when their parent does.

A child's standard input is a pipe that its parent holds open. However the parent ends, the
operating system closes the pipe, and the child sees its end. A command that may need its standard
input for a text is tied by a pipe beside it.
"""

import os
import signal
import sys
import threading


class Parent:
    """A child's view of its parent; `None` as descriptor for a process that has none."""

    def __init__(self, *, is_child: bool) -> None:
        self.descriptor = sys.stdin.fileno() if is_child else None

    def is_gone(self) -> bool:
        """Whether the parent has ended; to be asked when the descriptor can be read."""
        return self.descriptor is not None and os.read(self.descriptor, 1) == b""


def end_with(descriptor: int) -> None:
    """Have this process stop, as SIGTERM does, when whoever holds the pipe's other end is gone."""

    def wait() -> None:
        os.read(descriptor, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
