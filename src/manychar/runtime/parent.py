"""The tie between a process and the one that started it: children end when their parent does.

A child's standard input is a pipe that its parent holds open. However the parent ends, the
operating system closes the pipe, and the child sees its end.
"""

import os
import sys


class Parent:
    """A child's view of its parent; `None` as descriptor for a process that has none."""

    def __init__(self, *, is_child: bool) -> None:
        self.descriptor = sys.stdin.fileno() if is_child else None

    def is_gone(self) -> bool:
        """Whether the parent has ended; to be asked when the descriptor can be read."""
        return self.descriptor is not None and os.read(self.descriptor, 1) == b""
