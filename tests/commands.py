"""Runs the command line as a user does: real processes, waited for by event, none left behind."""

import contextlib
import dataclasses
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal, TypeVar

T = TypeVar("T")

MARK = "MANYCHAR_TEST_MARK"
GENEROUS = 90.0
LOOK_EVERY = 0.02
SMALL = ("--hidden", "8", "--seq-length", "5", "--streams", "2")
ONE_WORKER, TWO_WORKERS = (("--workers", number, "--no-compute") for number in "12")
"""Processes of their own: by default the server is one of them where cores are few."""
_NOT_INHERITED = ("COLUMNS", "FORCE_COLOR", "OPENBLAS", "OMP_", "MKL_", "VECLIB", "NPY_", MARK)


@dataclasses.dataclass(frozen=True)
class Ended:
    """What came of a process."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.err.rstrip("\n").rsplit("\n", 1)[-1]


class Running:
    """One process, its output read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self._heard = threading.Condition()
        self._text = {"out": b"", "err": b""}
        self._enough: set[str] = set()
        self._readers = [
            threading.Thread(target=self._read, args=(name, pipe), daemon=True)
            for name, pipe in (("out", process.stdout), ("err", process.stderr))
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        while (name not in self._enough) and (piece := os.read(pipe.fileno(), 65_536)):
            with self._heard:
                self._text[name] += piece
                self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()
        if name in self._enough:
            pipe.close()

    def stop_reading(self, name: str = "out") -> None:
        """Close this end of an output, as `head` does when it has enough."""
        self._enough.add(name)

    @property
    def out(self) -> str:
        return self._text["out"].decode(errors="replace")

    @property
    def err(self) -> str:
        return self._text["err"].decode(errors="replace")

    def wait_for(
        self, pattern: str, where: Literal["out", "err"] = "err", *, seconds: float = GENEROUS
    ) -> re.Match[str]:
        """Wait until the pattern stands in the output; fail if the process ends without it."""
        deadline = time.monotonic() + seconds
        with self._heard:
            while True:
                last = not any(reader.is_alive() for reader in self._readers)
                if match := re.search(pattern, getattr(self, where)):
                    return match
                assert not last, f"ended without {pattern!r} on std{where}: {self.described()}"
                assert time.monotonic() < deadline, f"no {pattern!r}: {self.described()}"
                self._heard.wait(0.2)

    def send(self, number: int) -> None:
        """Send a signal to the process group, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def interrupt(self) -> None:
        self.send(signal.SIGINT)

    def end(self, *, seconds: float = GENEROUS) -> Ended:
        """Wait for the end of the process and of its output."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {seconds} s: {self.described()}") from None
        for reader in self._readers:
            reader.join(seconds)
            assert not reader.is_alive(), f"its output is held open: {self.described()}"
        self.close()
        return Ended(code, self.out, self.err)

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def described(self) -> str:
        return f"{self.process.args!r}\n--- out\n{self.out[-3000:]}\n--- err\n{self.err[-3000:]}"


class Commands:
    """Starts `manychar` in one directory; all processes that come of it carry a mark."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._mark = secrets.token_hex(8)
        self._started: list[Running] = []

    def start(
        self,
        *arguments: str,
        env: dict[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        program: tuple[str, ...] = ("-m", "manychar"),
        before: tuple[str, ...] = (),
        directory: Path | None = None,
    ) -> Running:
        """Start a command, with its own session; `before` are words that it is called by."""
        process = subprocess.Popen(
            [*before, sys.executable, *program, *arguments],
            cwd=directory or self.directory,
            env=self._environment(env or {}),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        running = Running(process)
        self._started.append(running)
        return running

    def run(
        self,
        *arguments: str,
        env: dict[str, str] | None = None,
        given: bytes = b"",
        program: tuple[str, ...] = ("-m", "manychar"),
        seconds: float = GENEROUS,
    ) -> Ended:
        """Run a command to its end, with `given` as its standard input."""
        running = self.start(*arguments, env=env, stdin=subprocess.PIPE, program=program)
        assert running.process.stdin
        with contextlib.suppress(BrokenPipeError), running.process.stdin as pipe:
            pipe.write(given)
        return running.end(seconds=seconds)

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        path = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
        env |= {MARK: self._mark, "COLUMNS": "200", "PATH": path, **more}
        if "PYTHONPATH" in more and (outer := os.environ.get("PYTHONPATH")):
            env["PYTHONPATH"] = os.pathsep.join([more["PYTHONPATH"], outer])
        return env

    def family(self) -> dict[int, list[str]]:
        """Return the living processes that came of this one's commands: arguments by id."""
        wanted = f"{MARK}={self._mark}"
        return {pid: words for pid, words in _processes(wanted) if pid != os.getpid()}

    def find(self, *words: str) -> int:
        """Wait for a process of the family with these words among its arguments."""

        def found() -> int | None:
            for pid, arguments in self.family().items():
                if set(words) <= set(arguments):
                    return pid
            return None

        return until(found, f"a process with {words}")

    def expect_nobody(self) -> None:
        """Wait until no process of the family is left; fail if one stays."""
        until(lambda: not self.family(), lambda: f"the end of {self.family()}", seconds=40.0)

    def close(self) -> None:
        """End what is left, and fail if anything was left that nobody had asked to end."""
        left = self.family()
        deadline = time.monotonic() + GENEROUS
        while (there := self.family()) and time.monotonic() < deadline:
            for pid in there:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(LOOK_EVERY)
        for running in self._started:
            running.process.wait(GENEROUS)
            running.close()
        assert not left, f"left behind: {left}"


def _processes(wanted: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (id, arguments) of the processes with `wanted` in their environment."""
    if not Path("/proc/self/environ").exists():  # macOS
        command = ["ps", "-axEww", "-o", "pid=,command="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            if wanted in line:
                pid, *words = line.split()
                yield int(pid), words
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    words = (entry / "cmdline").read_bytes().decode().split("\0")
                    yield int(entry.name), words[:-1]


def until(
    true: Callable[[], T | None], what: str | Callable[[], str], *, seconds: float = GENEROUS
) -> T:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() >= deadline:
            raise AssertionError(
                f"waited {seconds} s for {what if isinstance(what, str) else what()}"
            )
        time.sleep(LOOK_EVERY)
    return found
