"""The single-process equivalence test: the same run in one process and in fleets, bit for bit."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics import plain
from manychar.numerics.definition import Definition
from manychar.numerics.train import State, advance, start, weights_sha256
from manychar.protocol.messages import Report
from manychar.protocol.server import dimensions_of
from manychar.runtime.checkpoint import list_checkpoints, read_checkpoint, tensors_of
from manychar.runtime.corpus_file import Corpus
from manychar.runtime.display import Display
from manychar.runtime.errors import RUN_FAILED, UserError
from manychar.runtime.launch import Fleet, endpoint_for
from manychar.runtime.run_directory import RunDirectory, Settings, create_run

HASH_SHOWN = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One way of doing the run: its name, and its states at the checkpoints, by step."""

    name: str
    states: dict[int, State]
    note: str = ""


def first_difference(one: State, other: State) -> str:
    """Return the name of the first array in which two states differ, or nothing."""
    tensors = tensors_of(other)
    for name, array in tensors_of(one).items():
        if array.tobytes() != tensors[name].tobytes():
            return name
    return "" if one.smooth_loss == other.smooth_loss else "smooth_loss"


def replay(directory: RunDirectory, steps: int) -> Iterator[State]:
    """Yield the states of a run, from checkpoint 0, computed in this process."""
    vocabulary, streams = directory.streams()
    state = start(directory.definition, len(vocabulary))
    yield state
    for _ in range(steps):
        state = advance(state, directory.definition, streams)
        yield state


class Equivalence:
    """Runs one definition in every way, in a directory of its own for each."""

    def __init__(
        self,
        definition: Definition,
        corpus: Corpus,
        settings: Settings,
        *,
        parent: Path,
    ) -> None:
        self.definition = definition
        self.corpus = corpus
        self.settings = settings
        self._parent = parent

    def alone(self) -> Trial:
        """Train in this process."""
        directory = self._directory("one-process", workers=1)
        every = self.settings.checkpoint_every
        last = self.settings.steps
        states = {
            state.step: state
            for state in replay(directory, last)
            if state.step % every == 0 or state.step == last
        }
        return Trial("one process", states)

    def fleet(self, workers: int, *, kill: bool) -> Trial:
        """Train with a real server and real workers; kill one on the way if told to."""
        name = f"{workers} worker{'s' if workers > 1 else ''}"
        directory = self._directory(name.replace(" ", "-"), workers=workers)
        killer = _Killer(at_step=self.settings.steps // 3) if kill else None
        with self._display(directory) as display:
            fleet = Fleet(
                directory,
                endpoint_for(self.settings.transport, directory.path),
                display,
                killer or (lambda _fleet, _report: None),
            )
            finish = fleet.run()
        if finish.code:
            raise UserError(f"{name}: {finish.reason or 'stopped'}", code=finish.code)
        if killer is not None and not killer.killed:
            raise UserError(
                f"{name}: over before a worker could be killed: give more --steps",
                code=RUN_FAILED,
            )
        states = {
            step: read_checkpoint(path).state
            for step, path in list_checkpoints(directory.checkpoints)
        }
        return Trial(name, states, note="one killed" if killer else "")

    def _directory(self, name: str, *, workers: int) -> RunDirectory:
        settings = dataclasses.replace(self.settings, workers=workers)
        return create_run(self._parent / name, self.definition, self.corpus, settings)

    def _display(self, directory: RunDirectory) -> Display:
        vocabulary, _ = directory.streams()
        return Display(
            vocabulary=vocabulary,
            dimensions=dimensions_of(self.definition, len(vocabulary)),
            seed=self.definition.seed,
            sample_length=0,
        )

    def largest_difference_from_plain(self, trial: Trial) -> float:
        """Return the largest relative difference of the last weights from the plain form's.

        Relative to the largest weight of the same array. One shard of one stream only.
        """
        directory = self._directory("plain", workers=1)
        weights = plain_trajectory(directory, self.settings.steps)
        last = trial.states[self.settings.steps].parameters.named()
        return max(_relative(last[name], weights[name]) for name in weights)


def plain_trajectory(directory: RunDirectory, steps: int) -> dict[str, NDArray[np.float64]]:
    """Return the weights after `steps` of min-char-rnn's plain form, from the run's first ones."""
    definition = directory.definition
    vocabulary, streams = directory.streams()
    first = start(definition, len(vocabulary)).parameters.named()
    weights = {name: view.astype(np.float64) for name, view in first.items()}
    memory = {name: np.zeros_like(array) for name, array in weights.items()}
    hidden = np.zeros(definition.hidden)
    for step in range(steps):
        batch = streams.batch_at(0, step)
        if batch.fresh:
            hidden = np.zeros_like(hidden)
        _, gradient, hidden = plain.loss_and_gradient(weights, batch.ids[0], hidden)
        plain.adagrad(
            weights,
            memory,
            gradient,
            clip=definition.clip,
            learning_rate=definition.learning_rate,
        )
    return weights


def _relative(array: NDArray[Any], reference: NDArray[np.float64]) -> float:
    return float(np.abs(array - reference).max() / max(np.abs(reference).max(), 1e-300))


class _Killer:
    """Kills the fleet's last worker, once, when it has come to a step."""

    def __init__(self, *, at_step: int) -> None:
        self.killed = False
        self._at_step = at_step

    def __call__(self, fleet: Fleet, report: Report) -> None:
        """Look at a report."""
        process = fleet.workers[-1].process
        if not self.killed and report.step >= self._at_step and process is not None:
            self.killed = True
            os.kill(process.pid, signal.SIGKILL)


def verdict(trials: list[Trial]) -> str:
    """Return where the first trial that differs from the first one differs, or nothing."""
    reference, *others = trials
    for trial in others:
        if trial.states.keys() != reference.states.keys():
            return f"{trial.name} has checkpoints at other steps: {sorted(trial.states)}"
        for step, state in sorted(reference.states.items()):
            if name := first_difference(state, trial.states[step]):
                return f"{trial.name} differs first at step {step}, in {name}"
    return ""


def table(trials: list[Trial]) -> list[list[str]]:
    """Return the rows of the table: a step, and each trial's hash of the weights."""
    header = [
        "step",
        *(f"{trial.name} ({trial.note})" if trial.note else trial.name for trial in trials),
    ]
    rows = [
        [
            f"{step:,}",
            *(
                weights_sha256(trial.states[step].parameters)[:HASH_SHOWN]
                if step in trial.states
                else "-"
                for trial in trials
            ),
        ]
        for step in sorted(trials[0].states)
    ]
    return [header, *rows]
