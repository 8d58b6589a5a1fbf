"""Starts child processes, restarts those that crash, forwards their log lines, and ends them.

A slot outlives the processes that run in it. A process that ends is started again after a pause
that doubles, unless it has ended soon after its start again and again.
"""

import contextlib
import dataclasses
import functools
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from manychar.processes import log
from manychar.processes.child_process import ChildProcess, Lines, how_it_ended
from manychar.processes.log import logger

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
SETTLED_AFTER = 10.0
QUICK_DEATHS = 5
LOOK_EVERY = 0.02  # seconds between two looks at processes that are ending


Due = Callable[[], float | None]


class Loop(Protocol):
    """What a supervisor needs of network.event_loop, which is in a folder above this one."""

    def on_readable(self, source: int, callback: Callable[[], object]) -> None: ...
    def on_signal(self, callback: Callable[[int], object], *numbers: int) -> None: ...
    def on_deadline(self, deadline: Due, callback: Callable[[], object]) -> None: ...
    def remove(self, source: int) -> None: ...


@dataclasses.dataclass(kw_only=True)
class ProcessSlot:
    """A command, and the process that runs it now. Times are monotonic.

    `on_line` is called with each line of standard output, `on_start` after each start.
    """

    name: str
    arguments: list[str]
    on_line: Callable[[str], object] | None = None
    on_start: Callable[[], object] | None = None
    has_stdin: bool = False
    process: ChildProcess | None = None
    pipes: list[Lines] = dataclasses.field(default_factory=list)
    started_at: float = 0.0
    restart_at: float | None = None
    quick_deaths: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing runs in it, and nothing is going to."""
        return self.process is None and self.restart_at is None

    def write(self, text: str) -> None:
        """Write to its process's standard input; a process that has ended reads nothing."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(text.encode())
                self.process.stdin.flush()

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)


def log_again(slot: ProcessSlot, line: str) -> None:
    """Log a child's record again; a line that is no record, as of a traceback, gets its name."""
    text, level, _ = log.read(line)
    logger.log(level, f"{slot.name}: {line}" if text is line else text)


class Supervisor:
    """The child processes of one parent.

    `on_end` is called with a slot and an exit code when its process has ended and its output has
    been read; it may call `restart`. `on_log` takes lines of standard error.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        on_end: Callable[[ProcessSlot, int], object],
        on_log: Callable[[ProcessSlot, str], object] = log_again,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.slots: list[ProcessSlot] = []
        self._loop = loop
        self._on_end = on_end
        self._on_log = on_log
        self._env = env
        self.is_stopping = False
        loop.on_signal(lambda _number: self.reap(), signal.SIGCHLD)
        loop.on_deadline(self.deadline, self.start_due)

    def start(self, slot: ProcessSlot) -> None:
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        stdin, stdout = pipe if slot.has_stdin else null, pipe if slot.on_line else null
        process = ChildProcess(slot.arguments, stdin=stdin, stdout=stdout, env=self._env)
        slot.process, slot.started_at, slot.restart_at = process, time.monotonic(), None
        if slot not in self.slots:
            self.slots.append(slot)
        on_log = functools.partial(self._on_log, slot)
        streams = ((process.stderr, on_log), (process.stdout, slot.on_line))
        slot.pipes = [
            Lines(stream.fileno(), on_line) for stream, on_line in streams if stream and on_line
        ]
        for lines in slot.pipes:
            self._loop.on_readable(lines.descriptor, functools.partial(self._read, lines))
        if slot.on_start is not None:
            slot.on_start()

    def _read(self, lines: Lines) -> None:
        lines.read()
        if lines.ended:
            self._loop.remove(lines.descriptor)

    def restart(self, slot: ProcessSlot, code: int) -> str:
        """Start a slot again after a pause; return why it has failed, if so."""
        if self.is_stopping:
            return ""
        how, now = how_it_ended(code), time.monotonic()
        slot.quick_deaths = 0 if now - slot.started_at >= SETTLED_AFTER else slot.quick_deaths + 1
        if slot.quick_deaths >= QUICK_DEATHS:
            return (
                f"failed: {slot.name} ended within {SETTLED_AFTER:.0f} s of its start"
                f" {QUICK_DEATHS} times, the last time {how}"
            )
        pause = min(FIRST_PAUSE * 2 ** max(slot.quick_deaths - 1, 0), LONGEST_PAUSE)
        slot.restart_at = now + pause
        logger.warning(f"{slot.name} ended {how}: starting it again in {pause:g} s")
        return ""

    def deadline(self) -> float | None:
        return min((s.restart_at for s in self.slots if s.restart_at is not None), default=None)

    def start_due(self) -> None:
        for slot in self.slots:
            if slot.restart_at is not None and time.monotonic() >= slot.restart_at:
                self.start(slot)

    def reap(self) -> None:
        """Report the processes that have ended, after their last lines."""
        for slot in self.slots:
            process = slot.process
            if process is None or process.poll() is None:
                continue
            for lines in slot.pipes:
                while lines.read():
                    pass
                self._loop.remove(lines.descriptor)
            process.close()
            slot.process, slot.pipes = None, []
            self._on_end(slot, process.returncode)

    def stop(self, within: float, number: int = signal.SIGTERM) -> None:
        """End all processes: SIGKILL `within` seconds after the signal; none is started again.

        Their output is read meanwhile, so that none of them blocks. The loop is not used.
        """
        self.is_stopping = True
        deadline = time.monotonic() + within
        for slot in self.slots:
            slot.restart_at = None
            slot.signal(number)
        while (running := self._running()) and time.monotonic() < deadline:
            for slot in running:
                for lines in slot.pipes:
                    lines.read()
            self.reap()
            time.sleep(LOOK_EVERY)
        for slot in running:
            logger.warning(f"{slot.name} did not end within {within:g} s: killed")
        self.kill()

    def kill(self) -> None:
        """End all processes by SIGKILL; none is started again."""
        self.is_stopping = True
        for slot in self.slots:
            slot.restart_at = None
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait()
        self.reap()

    def _running(self) -> list[ProcessSlot]:
        return [slot for slot in self.slots if slot.process is not None]
