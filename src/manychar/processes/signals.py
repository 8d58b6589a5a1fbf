"""Self-pipe: wakes the poll loop for signals, exited children and thread results."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from manychar.processes.parent_death import has_parent

SHOW_CURSOR = "\x1b[?25h"

early: list[int] = []
"""Signals that arrived before there was a loop: delivered to the first one that catches them."""


class SelfPipe:
    """Wakes the loop of the main thread, and holds the signals that came."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.settimeout(0)
        self._write.settimeout(0)
        self._signals: list[int] = []

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._read.fileno()

    def wake(self) -> None:
        """Wake the loop; from any thread."""
        with contextlib.suppress(BlockingIOError):
            self._write.send(b"\0")

    def take(self) -> list[int]:
        """Return the signals since the last call, and be ready to sleep again."""
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(4096):
                pass
        taken, self._signals = self._signals, []
        return taken

    @contextlib.contextmanager
    def catching(self, *signals: int) -> Iterator["SelfPipe"]:
        """Catch these signals; a second SIGINT or SIGTERM ends a process without parent at once.

        A child may get both from its parent and from a container engine that signals a whole group.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._caught) for number in signals}
        descriptor = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._signals += [number for number in early if number in signals]
        early[:] = [number for number in early if number not in signals]
        self.wake()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, _frame: object) -> None:
        self._signals.append(number)
        if number in (signal.SIGINT, signal.SIGTERM) and not has_parent():
            for again in (signal.SIGINT, signal.SIGTERM):
                signal.signal(again, self._end_at_once)

    def _end_at_once(self, number: int, _frame: object) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)
            sys.stderr.flush()
        os._exit(128 + number)

    def close(self) -> None:
        """Give the descriptors back."""
        self._read.close()
        self._write.close()
