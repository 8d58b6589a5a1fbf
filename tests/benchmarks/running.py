"""Real runs of this program: started, read by their metrics, and stopped in good order."""

import contextlib
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tests.benchmarks.asking import SideError, environment, last_word
from tests.benchmarks.plan import Plan
from tests.benchmarks.program import HERE, Program
from tests.benchmarks.task import Task

SECONDS_TO_STOP = 30.0
PATIENCE = 300.0
POLL = 0.02


class Process:
    """One process of a run; it is gone when the block ends."""

    def __init__(
        self, arguments: Sequence[str], *, program: Program = HERE, speaks: bool = False
    ) -> None:
        """Start `python ARGUMENTS`; one that `speaks` is read on standard output."""
        self.what = " ".join(arguments[1:3])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [program.python, *arguments],
            cwd=program.root,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if speaks else subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Have it stop in good order; end it if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)  # a shell's background ignores SIGINT
        try:
            self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self._errors.close()

    def listen(self) -> str:
        """Return the next line that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        if not line:
            self.must_live()
            raise SideError(f"{self.what}: it said nothing")
        return line

    def must_live(self) -> None:
        """Raise SideError if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(0)
            raise SideError(f"{self.what} ended with {code}: {last_word(self._errors)}")

    def until_it_ends(self) -> None:
        """Wait until it has ended; SideError if it did not end well."""
        code = self.process.wait(PATIENCE)
        if code:
            raise SideError(f"{self.what} ended with {code}: {last_word(self._errors)}")


def manychar(*arguments: str, program: Program = HERE, speaks: bool = False) -> Process:
    """Start a command of this program."""
    return Process(["-m", "manychar", *arguments], program=program, speaks=speaks)


def sizes(task: Task) -> list[str]:
    """Return the flags of a run of these sizes."""
    return [
        *("--hidden", str(task.hidden), "--shards", str(task.shards)),
        *("--streams", str(task.streams), "--numerics", task.numerics),
    ]


def operation(run_dir: Path, *, checkpoint_every: int = 0) -> list[str]:
    """Return the flags of a run that nobody watches, and that goes on until it is stopped."""
    return [
        *("--run-dir", str(run_dir), "--steps", "0"),
        *("--checkpoint-every", str(checkpoint_every), "--keep-checkpoints", "0"),
        *("--sample-every", "0", "--sample-length", "0"),
    ]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics so far."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def watched(run_dir: Path, processes: Sequence[Process]) -> Iterator[list[dict[str, Any]]]:
    """Yield the metrics again and again, from the first line on; SideError if there are none."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if lines := metrics(run_dir):
            yield lines
        for process in processes:
            process.must_live()
        time.sleep(POLL)
    raise SideError(f"{processes[0].what}: no steady figure within {PATIENCE:.0f} s")


def growth(
    run_dir: Path,
    processes: Sequence[Process],
    seconds: float,
    *,
    after: int = 0,
    read: Callable[[], Any] = lambda: None,
) -> tuple[dict[str, float], Any, Any]:
    """Return how much the metrics grew in at least `seconds` from step `after` on.

    And what `read` returned at the beginning and at the end.
    """
    first: dict[str, Any] = {}
    before = None
    for lines in watched(run_dir, processes):
        last = lines[-1]
        if not first and last["step"] >= after:
            first, before = last, read()
        if first and last["seconds"] - first["seconds"] >= seconds:
            break
    names = ("step", "characters", "seconds")
    return {name: last[name] - first[name] for name in names}, before, read()


class Fleet:
    """A server and its workers by `manychar train`, started anew each round."""

    def __init__(
        self, plan: Plan, *flags: str, program: Program = HERE, checkpoint_every: int = 0
    ) -> None:
        self._plan, self._flags, self._program = plan, flags, program
        self._checkpoint_every = checkpoint_every

    def measure(self, turn: int) -> float:
        """Return characters a second, the start left out; `turn` does not matter."""
        with tempfile.TemporaryDirectory(dir=self._plan.scratch) as folder:
            run_dir = Path(folder) / "run"
            how = operation(run_dir, checkpoint_every=self._checkpoint_every)
            text = str(self._plan.text)
            with manychar("train", text, *self._flags, *how, program=self._program) as fleet:
                after = self._checkpoint_every  # a validator has started by then
                grown, *_ = growth(run_dir, [fleet], self._plan.seconds, after=after)
        return grown["characters"] / grown["seconds"]
