"""What a person sees while a run trains: a progress bar on a terminal, plain lines elsewhere.

Samples go to standard output, everything else to standard error.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from manychar.numerics.loss_units import bits_of
from manychar.numerics.model import Parameters
from manychar.observability.model_source import for_reading, training_sample
from manychar.observability.snapshot import Snapshot
from manychar.processes import log
from manychar.processes.errors import because
from manychar.processes.text_format import duration
from manychar.protocol.messages import Dimensions, Weights
from manychar.protocol.run_spec import dimensions_of
from manychar.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)


PLAIN_EVERY = 2.0
REPORTS_FOR_SPEED = 26  # the last five seconds, or so many steps that take longer
BAR_WIDTH = 10


class _Console(Console):
    """One that outlives whoever listens to it."""

    def on_broken_pipe(self) -> None:
        """Go on: that nobody listens any more ends no training."""


class _AboveTheBar(logging.Handler):
    """Writes each line above the progress bar."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self._write(self.format(record))


class ProgressDisplay:
    """Shows the status, samples and log lines. As a context: the bar is taken down at the end."""

    def __init__(
        self, *, vocabulary: str, dimensions: Dimensions, seed: int, sample_length: int
    ) -> None:
        self._vocabulary = vocabulary
        self.dimensions = dimensions
        self._seed = seed
        self._sample_length = sample_length
        self._console = _Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._past: deque[tuple[float, int]] = deque(maxlen=REPORTS_FOR_SPEED)
        self._next_line = 0.0
        self._shown_step = -1
        self._sampled_version = 0
        self.last: Snapshot | None = None
        if self._console.is_terminal and not log.is_json() and logger.isEnabledFor(logging.INFO):
            self._progress = _progress(self._console)

    def __enter__(self) -> Self:
        """Put up the bar, if there is a terminal."""
        self._handled = log.handled_by(_AboveTheBar(self._print))
        self._handled.__enter__()
        if self._progress:
            self._task = self._progress.add_task("", total=None, steps="", text="starting")
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show the last status once more as a plain line, and take down the bar."""
        if self._progress:
            self._progress.stop()
        if self.last and self.last.status.step != self._shown_step:
            self._line(self.last)
        self._handled.__exit__(None, None, None)

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: that ends no training
            self._console.print(escape(line))

    def status(self, snapshot: Snapshot) -> None:
        """Show the run's status."""
        self.last, report = snapshot, snapshot.status
        if self._past and report.seconds < self._past[-1][0]:
            self._past.clear()  # a server that began again counts from its checkpoint
        self._past.append((report.seconds, report.characters))
        if self._progress:
            steps = f"{report.step:,}" + (f"/{report.steps:,}" if report.steps else "")
            room = self._console.width - len(steps) - BAR_WIDTH - 3
            self._progress.update(
                self._task,
                completed=report.step,
                total=report.steps or None,
                steps=steps,
                text=escape(_fitting(self._words(snapshot), room)),
            )
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_EVERY
            self._line(snapshot)

    def weights(self, weights: Weights) -> str | None:
        """Print, and return, a sample of what these weights write, once a version above 0."""
        if self._sample_length == 0 or weights.version <= self._sampled_version:
            return None
        self._sampled_version = weights.version
        text = self._sample(weights)
        if self._progress:
            self._progress.stop()
        try:
            sys.stdout.write(f"--- step {weights.version:,} ---\n{for_reading(text)}\n")
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._sample_length = 0
            logger.warning(f"standard output: {because(error)}: no more samples")
        if self._progress:
            self._progress.start()
        return text

    def _sample(self, weights: Weights) -> str:
        size = self.dimensions
        flat = np.frombuffer(weights.weights, np.dtype(size.dtype).newbyteorder("<"))
        return training_sample(
            Parameters(flat, size.vocabulary_size, size.hidden),
            self._vocabulary,
            seed=self._seed,
            step=weights.version,
            length=self._sample_length,
        )

    def _line(self, snapshot: Snapshot) -> None:
        report = snapshot.status
        self._shown_step = report.step
        total = f"/{report.steps:,}" if report.steps else ""
        words = "  ".join(self._words(snapshot))
        values = {**dataclasses.asdict(report), "workers": snapshot.working}
        logger.info(f"step {report.step:,}{total}  {words}", extra={"values": values})

    def _words(self, snapshot: Snapshot) -> list[str]:
        """Return the parts of the line, the most important first."""
        report, nats = snapshot.status, snapshot.nats
        words = [
            f"smooth loss {report.smooth_loss:.2f} ({nats:.3f} nats,"
            f" {bits_of(nats):.3f} bits a character)"
        ]
        if speed := self._speed():
            if report.steps:
                per_step = report.characters / max(report.step, 1)
                words.append(f"{duration((report.steps - report.step) * per_step / speed)} left")
            words.append(f"{speed:,.0f} characters/s")
        if report.validation is not None:
            words.append(f"validation {report.validation:.3f} nats at {report.validated:,}")
        words.append(" ".join(snapshot.working) or "no worker")
        if report.idle_workers:
            words.append(f"{report.idle_workers} idle")
        if dropped := {k: n for k, n in report.counts.items() if n}:
            words.append(", ".join(f"{k}: {n}" for k, n in sorted(dropped.items())))
        return words

    def _speed(self) -> float:
        """Return the median from report to report: one long wait tells nothing of what is left."""
        paces = [
            (after - before) / (now - then)
            for (then, before), (now, after) in itertools.pairwise(self._past)
            if now > then
        ]
        return statistics.median(paces) if paces else 0.0


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[steps]}"),
        BarColumn(bar_width=BAR_WIDTH),
        TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        refresh_per_second=5,
    )


def _fitting(words: list[str], room: int) -> str:
    """Return as many words as fit; where the first is too long, without its explanation."""
    if len(words[0]) > room - 12:
        words = [words[0].split(" (")[0], *words[1:]]
    line = words[0]
    for word in words[1:]:
        if len(line) + 2 + len(word) > room:
            break
        line += "  " + word
    return line


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a count is on its way to `total`; yields what takes each addition."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)
        return
    done, next_line = 0, time.monotonic() + PLAIN_EVERY

    def add(more: int) -> None:
        nonlocal done, next_line
        done += more
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + PLAIN_EVERY
            console.print(f"{done:,} of {total:,} {what}")

    yield add


def display_of(directory: RunDirectory) -> ProgressDisplay:
    """Return the progress display of a run."""
    definition, (vocabulary, _) = directory.definition, directory.streams()
    return ProgressDisplay(
        vocabulary=vocabulary,
        dimensions=dimensions_of(definition, len(vocabulary)),
        seed=definition.seed,
        sample_length=directory.operation.sample_length,
    )
