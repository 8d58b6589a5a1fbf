"""A command of this program, run for another Python program: its output, exit code and errors."""

import codecs
import contextlib
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO

from manychar.processes import log
from manychar.processes.child_process import PIECE_BYTES, Lines, how_it_ended, spawn
from manychar.processes.errors import UserError

logger = logging.getLogger(__name__)


class Command:
    """One command, in a process that ends when this one does, however it ends.

    `given` is its standard input; exit codes other than `accepted` are errors.
    """

    def __init__(
        self, *arguments: str, given: bytes | None = None, accepted: tuple[int, ...] = (0,)
    ) -> None:
        self.code = 0
        self._name = arguments[0]
        self._accepted = accepted
        self._error = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            self._child = spawn(
                list(arguments),
                stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={log.FORMAT_VARIABLE: "json"},
            )
        except (OSError, ValueError) as error:  # ValueError: no process takes such an argument
            raise UserError(f"manychar {arguments[0]}: {error}") from None
        self._process = self._child.process
        self._pipes = selectors.DefaultSelector()
        if self._process.stdout is not None and self._process.stderr is not None:
            self._pipes.register(self._process.stdout, selectors.EVENT_READ)
            lines = Lines(self._process.stderr.fileno(), self._print)
            self._pipes.register(self._process.stderr, selectors.EVENT_READ, lines)
        if given is not None and self._process.stdin is not None:
            arguments_of_thread = (self._process.stdin, given)
            threading.Thread(target=_feed, args=arguments_of_thread, daemon=True).start()

    def output(self) -> Iterator[str]:
        """Yield its standard output as it comes, to its end.

        Raises UserError with its own line where it fails. Closing or interrupting this iterator
        interrupts the command, which ends in good order; what it still writes is read.
        """
        try:
            yield from self._read()
            self.code = self._process.wait()
        except BaseException:
            self._process.send_signal(signal.SIGINT)
            for _ in self._read():
                pass
            self._process.wait()
            raise
        finally:
            self._close()
        if self.code not in self._accepted:
            reason = self._error or f"manychar {self._name} ended {how_it_ended(self.code)}"
            raise UserError(reason.removeprefix("manychar: "), code=self.code)

    def _read(self) -> Iterator[str]:
        while self._pipes.get_map():
            for key, _ in self._pipes.select():
                if isinstance(key.data, Lines):
                    key.data.read()
                    ended = key.data.ended
                else:
                    piece = os.read(key.fd, PIECE_BYTES)
                    ended = not piece
                    if text := self._decoder.decode(piece, final=ended):
                        yield text
                if ended:
                    self._pipes.unregister(key.fileobj)

    def _print(self, line: str) -> None:
        """Print a line of its standard error, but keep the one that says why it failed."""
        text, level = log.read(line)
        if level == logging.ERROR and text.startswith("manychar"):
            self._error = text
        else:
            print(line if log.is_json() else text, file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._process.poll() is None:  # interrupted again
            self._process.kill()
            self._process.wait()
        self._pipes.close()
        self._child.close()


def _feed(pipe: IO[bytes], given: bytes) -> None:
    """Write it all, in a thread: the command may write before it has read to the end."""
    with contextlib.suppress(BrokenPipeError), pipe:
        pipe.write(given)
