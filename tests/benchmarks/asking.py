"""The parent's end of a side: starts its process, waits until it is ready, and has it go."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Self

from tests.benchmarks.program import ROOT
from tests.benchmarks.task import Task

SECONDS_TO_END = 20.0
_SETTINGS = ("OPENBLAS_", "NPY_", "OMP_", "MKL_", "GOTO_")
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class SideError(RuntimeError):
    """A side that could not do its work. The message has its last word."""


def environment() -> dict[str, str]:
    """Return what every process of the suite sees: kernels as the machine has them, one thread."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_SETTINGS)}
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1")}


def last_word(errors: IO[bytes]) -> str:
    """Return the last line that a process wrote to this file."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


class Side:
    """One process of `tests.benchmarks.sides`, idle but when it is told to go."""

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.note, self.unit = name, "", 1.0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the side
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.sides", name, task.to_json()],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def until_ready(self) -> str:
        """Wait until it can go; return what it says about itself, which is its `note`."""
        self.note = str(self._answer()["ready"])
        return self.note

    def begin(self, argument: object = "") -> None:
        """Tell it to go."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"go {argument}\n")
            self._process.stdin.flush()
        except OSError:
            raise SideError(f"{self.name} is gone: {last_word(self._errors)}") from None

    def end(self) -> Any:
        """Wait until it has gone its way; return its figure."""
        return self._answer()["figure"]

    def ask(self, argument: object = "") -> Any:
        """Have it go, and return its figure."""
        self.begin(argument)
        return self.end()

    def measure(self, turn: int) -> float:
        """Have it go for one round; the figure is in the side's `unit`."""
        return self.unit * float(self.ask(turn))

    def close(self) -> None:
        """End the process: it sees the end of its standard input."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(SECONDS_TO_END)
            raise SideError(f"{self.name} ended: {last_word(self._errors)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def ready(tasks: Mapping[str, tuple[str, Task]]) -> Iterator[dict[str, Side]]:
    """Start sides by (module, task), one after the other; they can go, and end with the block."""
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, (module, task) in tasks.items():
            sides[name] = stack.enter_context(Side(module, task))
            sides[name].until_ready()
        yield sides


class Together:
    """Several processes that are started, and told to go, at the same moment; figures add up."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self._sides = sides

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._sides:
            side.close()

    def until_ready(self) -> str:
        """Wait until all can go; return what the first says about itself."""
        first, *_ = [side.until_ready() for side in self._sides]
        return first

    def measure(self, turn: int) -> float:
        """Have all go for one round, and add up."""
        for side in self._sides:
            side.begin(turn)
        return float(sum(side.end() for side in self._sides))
