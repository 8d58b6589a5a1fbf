"""Child processes of this program, and a seat for each: who has it, and when it is filled again.

Each child has a session of its own (Ctrl-C reaches the parent alone) and a pipe to the parent that
closes when the parent ends. A process that dies is started again after a growing pause, unless it
dies at once again and again.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
SETTLED_AFTER = 10.0
QUICK_DEATHS = 5

Process = subprocess.Popen[bytes]


def spawn(
    arguments: list[str],
    *,
    stdout: int | None = None,
    stderr: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start this program with these arguments; it sees its parent's end at its standard input.

    `env` is added to the environment.
    """
    return subprocess.Popen(  # noqa: S603 - this very program, with flags of our own
        [sys.executable, "-P", "-m", "manychar", *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Have what is started here never hear of Ctrl-C, from its first moment; this process later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def close_pipes(process: Process) -> None:
    """Give back a process's descriptors; the process sees the end of its standard input."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def how_it_ended(code: int) -> str:
    """Return an exit code in words."""
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


@dataclasses.dataclass
class ProcessSlot:
    """One process's place in the fleet, and who has it now. Times are of the monotonic clock."""

    name: str
    process: Process | None = None
    started_at: float = 0.0
    restart_at: float | None = None
    quick_deaths: int = 0

    def taken_by(self, process: Process, now: float) -> None:
        """Note who has it from now on."""
        self.process, self.started_at, self.restart_at = process, now, None

    def died(self, code: int, now: float) -> str:
        """Plan its restart after a growing pause; return why there is none, if so."""
        settled = now - self.started_at >= SETTLED_AFTER
        self.quick_deaths = 0 if settled else self.quick_deaths + 1
        if self.quick_deaths >= QUICK_DEATHS:
            return (
                f"gave up: {self.name} ended within {SETTLED_AFTER:.0f} s of its start"
                f" {QUICK_DEATHS} times, the last time {how_it_ended(code)}"
            )
        self.restart_at = now + self.pause
        return ""

    @property
    def pause(self) -> float:
        """Seconds before the next start."""
        return float(min(FIRST_PAUSE * 2 ** max(self.quick_deaths - 1, 0), LONGEST_PAUSE))

    def is_due(self, now: float) -> bool:
        """Whether it is time to fill it again."""
        return self.restart_at is not None and now >= self.restart_at

    @property
    def is_empty(self) -> bool:
        """Whether nobody has it, and nobody is going to."""
        return self.process is None and self.restart_at is None
