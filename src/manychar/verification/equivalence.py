"""The single-process equivalence test: the same run in one process and in fleets, bit for bit."""

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

from manychar.fleet.local_fleet import LocalFleet
from manychar.numerics.training_step import TrainingState, weights_sha256
from manychar.observability.progress import ProgressDisplay
from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.protocol.counters import Counter
from manychar.protocol.run_operation import Operation
from manychar.storage.checkpoint import list_checkpoints, read_checkpoint
from manychar.storage.run_directory import RunDirectory
from manychar.verification.replay import first_difference, replay

HASH_SHOWN = 16
TURNS = {"running": 0.02, "stopped": 0.04}  # seconds
LASTS = 10.0  # seconds of a trial, as long as something is still to happen to its fleet
TURN, SHORTEST_RUNNING = 0.1, 0.002  # seconds, in which the server is slowed for that
LONGER_EVERY = 5.0  # seconds: else a step whose exchange takes several turns would take too long


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One training of the run: its name, and its states at the checkpoints, by step.

    It took `seconds`. `note` is what happened to it; it is not `complete` if something else was to
    happen, too.
    """

    name: str
    states: dict[int, TrainingState]
    seconds: float
    note: str = ""
    complete: bool = True

    @property
    def title(self) -> str:
        """Its name, and what happened to it."""
        return f"{self.name} ({self.note})" if self.note else self.name


def alone(run: RunDirectory) -> Trial:
    """Train in this process."""
    every, last = run.operation.checkpoint_every, run.operation.steps
    began_at, done = time.monotonic(), replay(run, last)
    kept = {each.step: each for each in done if each.step % every == 0 or each.step == last}
    return Trial("one process", kept, time.monotonic() - began_at)


@dataclasses.dataclass(kw_only=True)
class Disturbance:
    """What is to happen to a fleet while it trains, and what of it has happened.

    After a quarter of the steps, `kill` is killed: of the workers, once all have joined, one that
    holds a lease. With `slow`, a worker that has joined is slowed, and ranges are to move for
    speed. Until all that has happened the server is slowed, so that a fast machine does not end the
    run before; a very short run can, or one where no move pays.
    """

    kill: Literal["worker", "server"] | None
    slow: bool
    operation: Operation
    step: int = 0
    serving: subprocess.Popen[bytes] | None = None
    joined: set[str] = dataclasses.field(default_factory=set)
    killed: list[tuple[subprocess.Popen[bytes], int]] = dataclasses.field(default_factory=list)
    ranges_moved: bool = False

    def on_status(self, snapshot: Snapshot, fleet: LocalFleet) -> None:
        """Note who has joined and whether ranges moved, and kill what is due."""
        self.step, last = snapshot.status.step, self.operation.steps
        self.serving = fleet.server.process
        self.ranges_moved |= snapshot.status.counts.get(Counter.RANGES_MOVED, 0) > 0
        self.joined.update(worker.name for worker in snapshot.workers)
        ready = self.kill == "server" or (self.kill == "worker" and self._all_joined)
        if self.killed or not ready or not last // 4 <= self.step < last:
            return
        targets = ["the server"] if self.kill == "server" else snapshot.working[-1:]
        for slot in (fleet.server, *fleet.workers):
            if slot.name in targets and slot.process is not None:
                self.killed.append((slot.process, self.step))
                os.kill(slot.process.pid, signal.SIGKILL)
                logger.info(f"{slot.name} killed with SIGKILL after step {self.step:,}")

    def to_slow(self, fleet: LocalFleet) -> subprocess.Popen[bytes] | None:
        """Return the process that is to be slowed now, if any."""
        slot = fleet.workers[-1] if self.slow and self.step < self.operation.steps else None
        return slot.process if slot and slot.name in self.joined else None

    def to_hold(self, fleet: LocalFleet) -> subprocess.Popen[bytes] | None:
        """Return the server's process, once it serves, while something is still to happen."""
        if self._all_joined and (self.killed or not self.kill) and self.ranges_moved >= self.slow:
            return None
        return self.serving if self.serving is fleet.server.process else None

    @property
    def _all_joined(self) -> bool:
        return len(self.joined) == self.operation.workers

    def result(self, *, was_slowed: bool) -> tuple[str, bool]:
        """Return what has happened in words, and whether that is all that was to happen."""
        expected = [(self._all_joined, "", f"only {len(self.joined)} joined")]
        if self.kill:  # a process that had ended already was not
            at = [step for each, step in self.killed if each.returncode == -signal.SIGKILL]
            words = f"{self.kill} killed at {max(at, default=0):,}", f"no {self.kill} killed"
            expected.append((bool(at), *words))
        if self.slow:
            expected.append((was_slowed, "a worker slowed", "no worker slowed"))
        notes = [yes if happened else no for happened, yes, no in expected]
        if self.slow:  # of few shards it may not pay to move any
            notes.append("ranges moved" if self.ranges_moved else "no range moved")
        return ", ".join(filter(None, notes)), all(happened for happened, *_ in expected)


def in_fleet(
    run: RunDirectory,
    workers: int,
    *,
    compute: bool,
    kill: Literal["worker", "server"] | None,
    slow: bool,
    alone_seconds: float,
) -> Trial:
    """Train in a copy of the run, with a server and workers, of which it is one by `compute`.

    `kill` and `slow` are as in Disturbance; one process took `alone_seconds`. Raises UserError
    where it fails.
    """
    name = f"{workers} worker{'s' if workers > 1 else ''}"
    path = run.path.with_name(name.replace(" ", "-"))
    shutil.copytree(run.path, path, copy_function=os.link)  # the ids are one file
    operation = dataclasses.replace(run.operation, workers=workers, compute=compute)
    directory = dataclasses.replace(run, path=path, operation=operation)
    directory.write_config()
    disturbance = Disturbance(kill=kill, slow=slow, operation=operation)
    began_at = time.monotonic()
    with ProgressDisplay(directory) as display:
        fleet = LocalFleet(directory, display, lambda seen: disturbance.on_status(seen, fleet))
        with (
            slowed(lambda: disturbance.to_slow(fleet), **TURNS) as stopped,
            slowed(
                lambda: disturbance.to_hold(fleet),
                longer_every=LONGER_EVERY,
                **turns_for(alone_seconds),
            ),
        ):
            finish = fleet.run()
    if finish.code:
        raise UserError(f"{name}: {finish.reason}", code=finish.code)
    logger.info(finish.reason)  # the last status does not come where the server was just restarted
    states = {
        step: read_checkpoint(path).state for step, path in list_checkpoints(directory.checkpoints)
    }
    seconds = time.monotonic() - began_at
    return Trial(name, states, seconds, *disturbance.result(was_slowed=stopped.is_set()))


def turns_for(alone_seconds: float) -> dict[str, float]:
    """Return the turns in which a process that takes so many seconds takes LASTS seconds."""
    running = max(SHORTEST_RUNNING, TURN * min(alone_seconds / LASTS, 1.0))
    return {"running": running, "stopped": TURN - running}


@contextlib.contextmanager
def slowed(
    current: Callable[[], subprocess.Popen[bytes] | None],
    *,
    running: float,
    stopped: float,
    longer_every: float = math.inf,
) -> Iterator[threading.Event]:
    """Stop the current process and let it go on, in turns of so many seconds.

    It runs for twice as long after each `longer_every` seconds. The event says that it was stopped
    once.
    """
    ended, stopped_once = threading.Event(), threading.Event()
    began_at = time.monotonic()

    def turn() -> float:
        return running * 2 ** min(10.0, (time.monotonic() - began_at) // longer_every)

    def work() -> None:
        while not ended.wait(turn()):
            with contextlib.suppress(ProcessLookupError):
                if (process := current()) is not None:
                    os.kill(process.pid, signal.SIGSTOP)
                    stopped_once.set()
                    ended.wait(stopped)
                    os.kill(process.pid, signal.SIGCONT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield stopped_once
    finally:
        ended.set()
        thread.join()


def difference_between(trials: list[Trial]) -> str:
    """Return where the first trial that differs from the first one differs, or nothing."""
    reference, *others = trials
    for trial in others:
        if trial.states.keys() != reference.states.keys():
            return f"{trial.name} has checkpoints at other steps: {sorted(trial.states)}"
        for step, state in sorted(reference.states.items()):
            if name := first_difference(state, trial.states[step]):
                return f"{trial.name} differs first at step {step:,}, in {name}"
    return ""


def table(trials: list[Trial]) -> str:
    """Return a table of each trial's hash of the weights, by step."""
    rows = [["step", *(trial.title for trial in trials)]]
    for step in sorted(trials[0].states):
        states = [trial.states.get(step) for trial in trials]
        hashes = [weights_sha256(s.parameters)[:HASH_SHOWN] if s else "-" for s in states]
        rows.append([f"{step:,}", *hashes])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (map(str.rjust, row, widths) for row in rows)
    return "".join("  ".join(cells) + "\n" for cells in aligned)
