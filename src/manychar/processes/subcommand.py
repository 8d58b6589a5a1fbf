"""A command of this program, run for another Python program: its output, its exit code, its end."""

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
from manychar.processes.errors import UserError
from manychar.processes.supervisor import how_it_ended

logger = logging.getLogger(__name__)


PIECE_BYTES = 65_536


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
        self._complaint, self._unsaid = "", b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._process, self._tie = _start(arguments, given)
        self._pipes = selectors.DefaultSelector()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                self._pipes.register(pipe, selectors.EVENT_READ)

    def output(self) -> Iterator[str]:
        """Yield its standard output as it comes, to its end.

        Raises UserError with its own line where it fails. Whoever interrupts this, or has enough,
        interrupts the command: it ends in good order, and is heard to its end.
        """
        try:
            yield from self._heard()
            self.code = self._process.wait()
        except BaseException:
            self._process.send_signal(signal.SIGINT)
            for _ in self._heard():
                pass
            self._process.wait()
            raise
        finally:
            self._close()
        if self.code not in self._accepted:
            reason = self._complaint or f"manychar {self._name} ended {how_it_ended(self.code)}"
            raise UserError(reason.removeprefix("manychar: "), code=self.code)

    def _heard(self) -> Iterator[str]:
        while self._pipes.get_map():
            for key, _ in self._pipes.select():
                piece = os.read(key.fd, PIECE_BYTES)
                if not piece:
                    self._pipes.unregister(key.fileobj)
                if key.fileobj is not self._process.stdout:
                    self._say(piece)
                elif text := self._decoder.decode(piece, final=not piece):
                    yield text

    def _say(self, piece: bytes) -> None:
        """Pass on the whole lines of its standard error; keep the one that says why it failed."""
        *lines, self._unsaid = (self._unsaid + piece).split(b"\n")
        for line in lines:
            heard = line.decode(errors="replace")
            text, level = log.read(heard)
            if level == logging.ERROR and text.startswith("manychar"):
                self._complaint = text
            else:
                print(heard if log.is_json() else text, file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._process.poll() is None:  # interrupted again
            self._process.kill()
            self._process.wait()
        self._pipes.close()
        os.close(self._tie)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _start(arguments: tuple[str, ...], given: bytes | None) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command; return it, and a descriptor with whose closing it stops."""
    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-P", "-m", "manychar", "--tied-to", str(theirs), *arguments],
            stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, log.FORMAT_VARIABLE: "json"},
            pass_fds=(theirs,),
            start_new_session=True,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    if given is not None and process.stdin is not None:
        threading.Thread(target=_feed, args=(process.stdin, given), daemon=True).start()
    return process, ours


def _feed(pipe: IO[bytes], given: bytes) -> None:
    """Write it all, in a thread of its own: the command may speak before it has read to the end."""
    with contextlib.suppress(BrokenPipeError), pipe:
        pipe.write(given)
