"""A command of this program, run for another Python program: its output, exit code and errors."""

import codecs
import contextlib
import json
import logging
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from manychar.processes import log
from manychar.processes.child_process import PIECE_BYTES, ChildProcess, how_it_ended
from manychar.processes.errors import RUN_FAILED, STOPPED, UserError, user_errors

ARGUMENTS_ON_STDIN = "--arguments-on-stdin"
STOP_AGAIN_AFTER = 3  # seconds in which a command that was stopped did not end
_COMMAND_OR_FLAG = re.compile(
    r"`[^`]*`|(?<![\w-])--(?P<flag>[a-z]+(?:-[a-z]+)*)(?:(?P<number> (?=\d))|=(?P<word>[a-z]+))?"
)


def with_arguments(text: str) -> str:
    """Return a text in which flags are named as Python's arguments, but for quoted commands.

    Standard input is the text that a caller has given as a str.
    """

    def named(match: re.Match[str]) -> str:
        flag, number, word = match.groups()
        value = f"={word!r}" if word else "=" * bool(number)
        return flag.replace("-", "_") + value if flag else match[0]

    return _COMMAND_OR_FLAG.sub(named, text).replace("standard input", "the text")


def program() -> str:
    """Return this program as it can be called again from here."""
    called, found = Path(sys.argv[0]), shutil.which("manychar")
    is_module = called.parts[-2:] == ("manychar", "__main__.py")
    own = Path(sys.executable).with_name("manychar") if is_module else called
    if own.name != "manychar" or (found and Path(found).resolve() == own.resolve()):
        return "manychar"
    return as_pasted(sys.executable, "-m", "manychar") if is_module else as_pasted(sys.argv[0])


def is_by_api() -> bool:
    """Whether this process is the Command of another Python program."""
    return ARGUMENTS_ON_STDIN in sys.argv


def as_pasted(*words: object) -> str:
    """Return words of a command as bash reads them, on one line; a Path is not read as a flag."""
    flags = (f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w) for w in words)
    return " ".join(map(_quoted, flags))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word))}'"


def _escaped(character: str) -> str:
    if character.isprintable() and character not in "\\'":
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


class Command:
    """One command, in a process that ends when this one does, however it ends.

    `given` is its standard input, after a line with its arguments: those of a process are bounded,
    and cannot be any text. Exit codes other than `accepted` are errors. `on_progress` gets the
    fields of each line of progress, which is printed where it is None; where `quiet`, of other
    lines only those above level info are printed.
    """

    def __init__(
        self,
        name: str,
        *arguments: str,
        given: bytes = b"",
        accepted: frozenset[int] = frozenset({0}),
        on_progress: Callable[[Mapping[str, Any]], object] | None = None,
        quiet: bool = False,
    ) -> None:
        self.code = 0
        self._name = name
        self._accepted = accepted
        self._error = ""
        self._on_progress = on_progress
        self._quiet = quiet
        self._raised: BaseException | None = None
        words, env = (name, ARGUMENTS_ON_STDIN), {log.FORMAT_VARIABLE: "json"}
        pipe = subprocess.PIPE
        with user_errors(f"manychar {name}"):
            self._process = ChildProcess(words, stdin=pipe, stdout=pipe, env=env)
        given = json.dumps(arguments).encode() + b"\n" + given
        self._descriptor = self._process.stdout.fileno() if self._process.stdout else -1
        self._threads = [
            threading.Thread(target=self._read_errors, daemon=True),
            threading.Thread(target=self._feed, args=(given,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def output(self) -> Iterator[str]:
        """Yield its standard output as it comes, to its end.

        Raises UserError with its own line where it fails. Closing or interrupting this iterator
        stops the command, which ends in good order; what it still writes is read.
        """
        process = self._process
        try:
            pieces = iter(lambda: os.read(self._descriptor, PIECE_BYTES), b"")
            yield from codecs.iterdecode(pieces, "utf-8", "replace")
            self.code = process.wait()
        except BaseException:
            self._end()
            process.wait()
            raise
        finally:
            self.kill()  # without effect unless interrupted again
            for thread in self._threads:
                thread.join()
            process.close()
        if self._raised is not None:
            raise self._raised
        if self.code not in self._accepted:
            reason = self._error or f"manychar {self._name} ended {how_it_ended(self.code)}"
            code = self.code if self.code > 0 else RUN_FAILED  # a signal ended it
            raise UserError(reason.removeprefix("manychar: "), code=code)

    def _end(self) -> None:
        """Have it end in good order, and read what it still writes.

        By SIGTERM: a SIGINT that this program ignores is ignored there, too. Python handles a
        signal that comes just before a read blocks only after that read, so it is sent again.
        """
        self._process.terminate()
        readable = select.poll()
        readable.register(self._descriptor, select.POLLIN)
        while True:
            if not readable.poll(1000 * STOP_AGAIN_AFTER):
                self._process.terminate()
            elif not os.read(self._descriptor, PIECE_BYTES):
                return

    def stop(self) -> None:
        """Have it end in good order, and accept that it ends by that."""
        self._accepted |= {STOPPED, -signal.SIGTERM}
        self._process.terminate()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def is_calling_back(self) -> bool:
        """Whether the caller is `on_progress`: the command's end waits for it."""
        return threading.current_thread() in self._threads

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self._process.kill()
        self._process.wait()

    def _read_errors(self) -> None:
        """Print the lines of its standard error, but keep the one that says why it failed."""
        for written in self._process.stderr or ():
            line = written.decode(errors="replace").rstrip("\n")
            text, level, fields = log.read(line)
            text = with_arguments(text)
            if level == logging.ERROR and text.startswith("manychar"):
                self._error = text
            elif self._on_progress is not None and "step" in fields:  # a line of progress
                try:
                    self._on_progress(fields | {"text": text})
                except BaseException as error:
                    self._on_progress, self._raised = lambda _: None, error
                    self._process.terminate()
            elif not self._quiet or level > logging.INFO:
                log.write_line(line if log.is_json() else log.escaped(text))

    def _feed(self, given: bytes) -> None:
        """Write its standard input, in a thread: it may write before it has read to the end."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
                pipe.write(given)
