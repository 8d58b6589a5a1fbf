"""Standard output and error that no loop waits for: a thread writes what is queued.

Where the queue is full, because a reader stalls, a terminal is held by Ctrl-S or a disk hangs,
records are dropped, and counted in a warning. A record is what one `write` gets.
"""

import contextlib
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from manychar.processes.errors import because, start_thread
from manychar.processes.log import logger

MOST_RECORDS = 1000
GIVE_UP_AFTER, LOOK_EVERY = 5.0, 0.01  # seconds, at the end


class QueuedStream:
    """A standard stream whose `write` never waits. It raises an earlier error, but for stderr.

    It writes to the descriptor: at its end Python would wait for a thread that uses the stream.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._records: queue.Queue[bytes] = queue.Queue(MOST_RECORDS)
        self._dropped = 0
        self._error: OSError | None = None
        self._is_error_known = False
        descriptor = stream.fileno()
        work = threading.Thread(target=self._work, args=(descriptor,), name=name, daemon=True)
        start_thread(work)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def check(self) -> None:
        """Raise the error of an earlier `write`, but for stderr."""
        if self._error is not None and self._name == "stdout":
            self._is_error_known = True
            raise self._error

    def write(self, text: str) -> int:
        self.check()
        if self._records.empty():
            self._report(self._dropped)
        try:
            self._records.put_nowait(text.encode(self._stream.encoding, "backslashreplace"))
        except queue.Full:
            self._dropped += 1
        return len(text)

    def wait(self) -> None:
        """Wait until all is written, for GIVE_UP_AFTER seconds at most."""
        deadline = time.monotonic() + GIVE_UP_AFTER
        while self._records.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)

    def drain(self) -> None:
        """Wait as `wait` does, and report what was not written."""
        self.wait()
        self._report(self._dropped + self._records.unfinished_tasks)
        if self._name == "stdout" and self._error is not None and not self._is_error_known:
            logger.warning(f"standard output: {because(self._error)}: the rest is lost")

    def _report(self, dropped: int) -> None:
        self._dropped = 0
        if dropped:
            logger.warning(f"{self._name} was not read in time: {dropped:,} records dropped")

    def _work(self, descriptor: int) -> None:
        while True:
            rest = self._records.get()
            while rest:
                try:
                    rest = rest[os.write(descriptor, rest) :]
                except BlockingIOError:  # another process made the terminal non-blocking
                    select.select([], [descriptor], [])
                except OSError as error:
                    self._error, rest = error, b""
            self._records.task_done()


@contextlib.contextmanager
def queued(name: str) -> Iterator[None]:
    """Queue what is written to `stdout` or `stderr`; drain the queue at the end."""
    stream = getattr(sys, name)
    setattr(sys, name, QueuedStream(stream, name))
    try:
        yield
    finally:
        getattr(sys, name).drain()
        setattr(sys, name, stream)
