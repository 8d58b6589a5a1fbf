"""The single-process equivalence test: the same run in one process and in fleets, bit for bit."""

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Literal

from manychar.fleet.local_fleet import LocalFleet
from manychar.numerics.training_step import TrainingState, weights_sha256
from manychar.observability.progress import ProgressDisplay
from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import RUN_FAILED, UserError
from manychar.storage.checkpoint import list_checkpoints, read_checkpoint
from manychar.storage.run_directory import RunDirectory
from manychar.verification.replay import first_difference, replay

logger = logging.getLogger(__name__)

HASH_SHOWN = 16
TURNS = {"running": 0.02, "stopped": 0.04}  # seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One training of the run: its name, and its states at the checkpoints, by step."""

    name: str
    states: dict[int, TrainingState]
    note: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Equivalence:
    """Trains one run in one process and in fleets, each in a copy of its directory."""

    run: RunDirectory

    def alone(self) -> Trial:
        every, last = self.run.operation.checkpoint_every, self.run.operation.steps
        done = replay(self.run, last)
        kept = {each.step: each for each in done if each.step % every == 0 or each.step == last}
        return Trial("one process", kept)

    def fleet(
        self, workers: int, *, compute: bool, kill: Literal["worker", "server"] | None, slow: bool
    ) -> Trial:
        """Train with a server and workers; with `compute`, the server is one of the workers.

        After a quarter of the steps, `kill` is killed. With `slow`, a worker is slowed, so that
        ranges move.
        """
        name = f"{workers} worker{'s' if workers > 1 else ''}"
        directory = self._directory(name.replace(" ", "-"), workers=workers, compute=compute)
        killer = _Killer(kill, at_step=self.run.operation.steps // 4)
        with ProgressDisplay(directory) as display:
            killer.fleet = LocalFleet(directory, display, killer.status)
            turns = slowed(lambda: killer.fleet.workers[-1].process, **TURNS)
            with turns if slow else contextlib.nullcontext():
                finish = killer.fleet.run()
        if finish.code:
            raise UserError(f"{name}: {finish.reason}", code=finish.code)
        if kill and not killer.note:
            early = f"{name}: finished before a {kill} could be killed: give more --steps"
            raise UserError(early, code=RUN_FAILED)
        saved = list_checkpoints(directory.checkpoints)
        states = {step: read_checkpoint(path).state for step, path in saved}
        notes = [killer.note, "a worker slowed" if slow else ""]
        return Trial(name, states, note=", ".join(filter(None, notes)))

    def _directory(self, name: str, *, workers: int, compute: bool) -> RunDirectory:
        path = self.run.path.with_name(name)
        shutil.copytree(self.run.path, path, copy_function=os.link)  # the ids are one file
        operation = dataclasses.replace(self.run.operation, workers=workers, compute=compute)
        directory = dataclasses.replace(self.run, path=path, operation=operation)
        directory.write_config()
        return directory


@contextlib.contextmanager
def slowed(
    current: Callable[[], subprocess.Popen[bytes] | None], *, running: float, stopped: float
) -> Iterator[None]:
    """Stop the current process and let it go on, in turns of so many seconds."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(running):
            with contextlib.suppress(ProcessLookupError):
                if (process := current()) is not None:
                    os.kill(process.pid, signal.SIGSTOP)
                    ended.wait(stopped)
                    os.kill(process.pid, signal.SIGCONT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Killer:
    """Kills the server or a worker that holds a lease, once, when the fleet has come to a step."""

    fleet: LocalFleet

    def __init__(self, role: str | None, *, at_step: int) -> None:
        self.note = ""
        self._role = role
        self._at_step = at_step

    def status(self, snapshot: Snapshot) -> None:
        step = snapshot.status.step
        if self.note or self._role is None or step < self._at_step:
            return
        targets = ["the server"] if self._role == "server" else snapshot.working[-1:]
        for slot in (self.fleet.server, *self.fleet.workers):
            if slot.name in targets and slot.process is not None:
                self.note = f"{self._role} killed at {step:,}"
                os.kill(slot.process.pid, signal.SIGKILL)
                logger.info(f"{slot.name} killed with SIGKILL after step {step:,}")


def difference_between(trials: list[Trial]) -> str:
    """Return where the first trial that differs from the first one differs, or nothing."""
    reference, *others = trials
    for trial in others:
        if trial.states.keys() != reference.states.keys():
            return f"{trial.name} has checkpoints at other steps: {sorted(trial.states)}"
        for step, state in sorted(reference.states.items()):
            if name := first_difference(state, trial.states[step]):
                return f"{trial.name} differs first at step {step}, in {name}"
    return ""


def table(trials: list[Trial]) -> str:
    """Return a table of each trial's hash of the weights, by step."""
    rows = [["step", *(f"{t.name} ({t.note})" if t.note else t.name for t in trials)]]
    for step in sorted(trials[0].states):
        states = [trial.states.get(step) for trial in trials]
        hashes = [weights_sha256(s.parameters)[:HASH_SHOWN] if s else "-" for s in states]
        rows.append([f"{step:,}", *hashes])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (map(str.rjust, row, widths) for row in rows)
    return "".join("  ".join(cells) + "\n" for cells in aligned)
