"""Real runs of this program: started, read by their metrics, and stopped in good order."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tests.benchmarks.asking import ROOT, SideError, environment, last_word

SECONDS_TO_STOP = 30.0
PATIENCE = 300.0
POLL = 0.05


class Process:
    """One process of a run; it is gone when the block ends."""

    def __init__(self, arguments: Sequence[str], *, speaks: bool = False) -> None:
        """Start `python -m ARGUMENTS`; one that `speaks` is read on standard output."""
        self.what = " ".join(arguments[:2])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if speaks else subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Have it stop as by Ctrl-C; end it if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
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


def operation(run_dir: Path, *, steps: int = 0, checkpoint_every: int = 0) -> list[str]:
    """Return the flags of a run that nobody watches; without `steps`, it goes on until stopped."""
    return [
        *("--run-dir", str(run_dir), "--steps", str(steps)),
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


def steady_rate(
    run_dir: Path, key: str, seconds: float, processes: Sequence[Process], *, after: int = 0
) -> float:
    """Return how fast `key` grows, a second, for at least `seconds` from the step `after` on."""
    for lines in watched(run_dir, processes):
        later = [line for line in lines if line["step"] >= after] or lines[-1:]
        first, last = later[0], later[-1]
        if last["seconds"] - first["seconds"] >= seconds:
            break
    return float((last[key] - first[key]) / (last["seconds"] - first["seconds"]))


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


class Fleets:
    """A server and its workers by `manychar train`, started anew each round."""

    def __init__(
        self,
        text: Path,
        scratch: Path,
        seconds: float,
        flags: Sequence[str],
        *,
        checkpoint_every: int = 0,
    ) -> None:
        self._text, self._scratch, self._seconds, self._flags = text, scratch, seconds, flags
        self._checkpoint_every = checkpoint_every

    def measure(self, turn: int) -> float:
        """Return characters a second, the start left out; `turn` does not matter."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            run_dir = Path(folder) / "run"
            how = operation(run_dir, checkpoint_every=self._checkpoint_every)
            arguments = ["manychar", "train", str(self._text), *self._flags, *how]
            with Process(arguments) as fleet:
                after = self._checkpoint_every  # a validator has started by then
                return steady_rate(run_dir, "characters", self._seconds, [fleet], after=after)
