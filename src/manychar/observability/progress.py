"""The display while a run trains: a progress bar on a terminal, plain lines elsewhere.

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
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from manychar.observability.model_source import for_reading, parameters_of, training_sample
from manychar.observability.snapshot import Snapshot
from manychar.processes import log
from manychar.processes.errors import because
from manychar.processes.text_format import bits_of, duration
from manychar.protocol.messages import Dimensions, Weights
from manychar.protocol.run_spec import dimensions_of
from manychar.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

PLAIN_EVERY = 2.0
REPORTS_FOR_SPEED = 26  # the last five seconds, or so many steps that take longer
BAR_WIDTH = 10


class _Console(Console):
    """A console that ignores a closed standard error: training goes on."""

    def on_broken_pipe(self) -> None:
        """Go on."""


class _AboveTheBar(logging.Handler):
    """Writes each line above the progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a closed standard error is ignored."""
        with contextlib.suppress(OSError):
            self._console.print(escape(self.format(record)))


class ProgressDisplay:
    """Shows the status, samples and log lines. As a context, it ends the bar."""

    def __init__(
        self, *, vocabulary: str, dimensions: Dimensions, seed: int, sample_length: int
    ) -> None:
        self._vocabulary = vocabulary
        self._dimensions = dimensions
        self._seed = seed
        self._sample_length = sample_length
        self._console = _Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._past: deque[tuple[float, int]] = deque(maxlen=REPORTS_FOR_SPEED)
        self._next_line = 0.0
        self._shown_step = -1
        self._sampled_version = 0
        self._last: Snapshot | None = None
        if self._console.is_terminal and not log.is_json() and logger.isEnabledFor(logging.INFO):
            self._bar = _bar(self._console)

    def __enter__(self) -> Self:
        """Start the bar, if there is a terminal."""
        self._handled = log.handled_by(_AboveTheBar(self._console))
        self._handled.__enter__()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show the last status once more as a plain line, and end the bar."""
        if self._bar:
            self._bar.stop()
        if self._last and self._last.status.step != self._shown_step:
            self._line(self._last)
        self._handled.__exit__(None, None, None)

    def status(self, snapshot: Snapshot) -> None:
        """Show the run's status."""
        self._last, status = snapshot, snapshot.status
        if self._past and status.seconds < self._past[-1][0]:
            self._past.clear()  # a server that was started again counts from its checkpoint
        self._past.append((status.seconds, status.characters))
        if self._bar:
            steps, done, total = _steps(snapshot), status.step, status.steps or None
            room = self._console.width - len(steps) - BAR_WIDTH - 3
            text = escape(_fitting(self._words(snapshot), room))
            self._bar.update(TaskID(0), completed=done, total=total, steps=steps, text=text)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_EVERY
            self._line(snapshot)

    def weights(self, weights: Weights) -> str | None:
        """Print, and return, a sample of what these weights write, once a version above 0."""
        if self._sample_length == 0 or weights.version <= self._sampled_version:
            return None
        step = self._sampled_version = weights.version
        model = parameters_of(self._dimensions, weights), self._vocabulary
        text = training_sample(*model, seed=self._seed, step=step, length=self._sample_length)
        if self._bar:
            self._bar.stop()
        try:
            sys.stdout.write(f"--- step {step:,} ---\n{for_reading(text)}\n")
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._sample_length = 0
            logger.warning(f"standard output: {because(error)}: no more samples")
        if self._bar:
            self._bar.start()
        return text

    def _line(self, snapshot: Snapshot) -> None:
        self._shown_step = snapshot.status.step
        values = {**dataclasses.asdict(snapshot.status), "workers": snapshot.working}
        line = "  ".join([f"step {_steps(snapshot)}", *self._words(snapshot)])
        logger.info(line, extra={"values": values})

    def _words(self, snapshot: Snapshot) -> list[str]:
        """Return the parts of the line, the most important first."""
        status, nats = snapshot.status, snapshot.nats
        units = f"({nats:.3f} nats, {bits_of(nats):.3f} bits a character)"
        words = [f"smooth loss {status.smooth_loss:.2f} {units}"]
        if speed := self._speed():
            if status.steps:
                per_step = status.characters / max(status.step, 1)
                words.append(f"{duration((status.steps - status.step) * per_step / speed)} left")
            words.append(f"{speed:,.0f} characters/s")
        if status.validation is not None:
            words.append(f"validation {status.validation:.3f} nats at {status.validated:,}")
        words.append(" ".join(snapshot.working) or "no worker")
        if status.idle_workers:
            words.append(f"{status.idle_workers} idle")
        if dropped := {k: n for k, n in status.counts.items() if n}:
            words.append(", ".join(f"{k}: {n}" for k, n in sorted(dropped.items())))
        return words

    def _speed(self) -> float:
        """Return the median from report to report: one long wait tells nothing of what is left."""
        pairs = itertools.pairwise(self._past)
        speeds = [(b - a) / (now - then) for (then, a), (now, b) in pairs if now > then]
        return statistics.median(speeds) if speeds else 0.0


def _steps(snapshot: Snapshot) -> str:
    step, steps = snapshot.status.step, snapshot.status.steps
    return f"{step:,}/{steps:,}" if steps else f"{step:,}"


def _bar(console: Console) -> Progress:
    text = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True))
    columns = TextColumn("{task.fields[steps]}"), BarColumn(bar_width=BAR_WIDTH), text
    bar = Progress(*columns, console=console, transient=True, refresh_per_second=5)
    bar.add_task("", total=None, steps="", text="starting")
    return bar


def _fitting(words: list[str], room: int) -> str:
    """Return as many words as fit; where the first is too long, without its explanation."""
    line = words[0] if len(words[0]) <= room - 12 else words[0].split(" (")[0]
    for word in words[1:]:
        if len(line) + 2 + len(word) > room:
            break
        line += "  " + word
    return line


def counting(what: str, total: int) -> Callable[[int], None]:
    """Return what adds to a count, and logs every two seconds how far it has come."""
    done, next_line = 0, time.monotonic() + PLAIN_EVERY

    def add(more: int) -> None:
        nonlocal done, next_line
        done += more
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + PLAIN_EVERY
            logger.info(f"{done:,} of {total:,} {what}")

    return add


def display_of(directory: RunDirectory) -> ProgressDisplay:
    """Return the progress display of a run."""
    definition, (vocabulary, _) = directory.definition, directory.streams()
    return ProgressDisplay(
        vocabulary=vocabulary,
        dimensions=dimensions_of(definition, len(vocabulary)),
        seed=definition.seed,
        sample_length=directory.operation.sample_length,
    )
