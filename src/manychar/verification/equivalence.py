"""The single-process equivalence test: the same run in one process and in fleets, bit for bit."""

import contextlib
import dataclasses
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
from manychar.processes.log import logger
from manychar.storage.checkpoint import list_checkpoints, read_checkpoint
from manychar.storage.run_directory import RunDirectory
from manychar.verification.replay import first_difference, replay

HASH_SHOWN = 16
TURNS = {"running": 0.02, "stopped": 0.04}  # seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One training of the run: its name, and its states at the checkpoints, by step."""

    name: str
    states: dict[int, TrainingState]
    note: str = ""


def alone(run: RunDirectory) -> Trial:
    """Train in this process."""
    every, last = run.operation.checkpoint_every, run.operation.steps
    done = replay(run, last)
    kept = {each.step: each for each in done if each.step % every == 0 or each.step == last}
    return Trial("one process", kept)


def in_fleet(
    run: RunDirectory,
    workers: int,
    *,
    compute: bool,
    kill: Literal["worker", "server"] | None,
    slow: bool,
) -> Trial:
    """Train in a copy of the run, with a server and workers, of which it is one by `compute`.

    After a quarter of the steps, `kill` is killed: of the workers one that holds a lease. With
    `slow`, a worker is slowed, so that ranges move. Raises UserError where it fails.
    """
    name = f"{workers} worker{'s' if workers > 1 else ''}"
    path = run.path.with_name(name.replace(" ", "-"))
    shutil.copytree(run.path, path, copy_function=os.link)  # the ids are one file
    operation = dataclasses.replace(run.operation, workers=workers, compute=compute)
    directory = dataclasses.replace(run, path=path, operation=operation)
    directory.write_config()
    killed = ""

    def on_status(snapshot: Snapshot) -> None:
        nonlocal killed
        step = snapshot.status.step
        if killed or kill is None or step < operation.steps // 4:
            return
        targets = ["the server"] if kill == "server" else snapshot.working[-1:]
        for slot in (fleet.server, *fleet.workers):
            if slot.name in targets and slot.process is not None:
                killed = f"{kill} killed at {step:,}"
                os.kill(slot.process.pid, signal.SIGKILL)
                logger.info(f"{slot.name} killed with SIGKILL after step {step:,}")

    with ProgressDisplay(directory) as display:
        fleet = LocalFleet(directory, display, on_status)
        turns = slowed(lambda: fleet.workers[-1].process, **TURNS)
        with turns if slow else contextlib.nullcontext():
            finish = fleet.run()
    if finish.code:
        raise UserError(f"{name}: {finish.reason}", code=finish.code)
    if kill and not killed:
        early = f"{name}: finished before a {kill} could be killed: give more --steps"
        raise UserError(early, code=RUN_FAILED)
    states = {
        step: read_checkpoint(path).state for step, path in list_checkpoints(directory.checkpoints)
    }
    return Trial(name, states, ", ".join(filter(None, [killed, "a worker slowed" * slow])))


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
