"""The display while a run trains: a progress bar on a terminal, plain lines elsewhere.

Samples go to standard output, everything else to standard error.
"""

import dataclasses
import math
import sys
import time
from collections import deque
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from manychar.observability import history
from manychar.observability.model_source import for_reading, parameters_of, training_sample
from manychar.observability.snapshot import Snapshot
from manychar.observability.text_format import duration, step_of
from manychar.processes.errors import because
from manychar.processes.log import logger
from manychar.processes.work_progress import can_draw
from manychar.protocol.counters import USUAL
from manychar.protocol.messages import Status, Weights
from manychar.protocol.run_spec import dimensions_of
from manychar.protocol.status_report import mean_loss
from manychar.storage.run_directory import RunDirectory

FIRST_EVERY, LONGEST_EVERY, SHARE = 2.0, 30.0, 1 / 30
"""Seconds between two lines: a share of the run's time. That is less than 3,000 lines a day."""
BAR_WIDTH = 10
HINT_AFTER, HINT_ABOVE = 15.0, 0.5


# Many attributes: the run's own, what was shown of it, and when.
class ProgressDisplay:
    """Shows a run's status and samples. As a context, it shows the bar below what is logged."""

    def __init__(self, directory: RunDirectory, log_every: float | None = None) -> None:
        self._seed = directory.definition.seed
        self._sample_length = directory.operation.sample_length
        self._vocabulary, _ = directory.corpus()
        self._dimensions = dimensions_of(directory.definition, len(self._vocabulary))
        self._recent: deque[history.Point] = deque(maxlen=history.RECENT_POINTS)
        self._log_every = log_every
        self._began_at = time.monotonic()
        self._next_line = 0.0
        self._shown: Status | None = None
        self._hinted = False
        self._sample_every = directory.operation.sample_every
        self._sampled_version = self._samples_left_out = 0
        self._counted_to = directory.newest_step()
        self._last: Snapshot | None = None
        self._bar = _bar() if can_draw() else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show the last status as a plain line, with the loss that run list and metrics have."""
        if self._bar:
            self._bar.stop()
        if self._last and (self._shown is None or self._last.status.step != self._shown.step):
            self._line(self._last, self._last.status.loss_nats_per_character)
        if self._samples_left_out:
            advice = "give a larger --sample-every, or a smaller --sample-length"
            logger.info(f"samples_left_out: {self._samples_left_out:,}; {advice}")

    def status(self, snapshot: Snapshot) -> None:
        self._last, status = snapshot, snapshot.status
        if self._recent and status.seconds < self._recent[-1].seconds:
            self._recent.clear()  # a server that was started again counts from its checkpoint
        self._recent.append(history.point_of(snapshot))
        if self._bar:
            steps, total = step_of(status.step, status.steps), status.steps or None
            room = self._bar.console.width - len(steps) - BAR_WIDTH - 3
            text = _fitting(self._words(snapshot, status.loss_nats_per_character), room)
            self._bar.update(TaskID(0), completed=status.step, total=total, steps=steps, text=text)
        elif (now := time.monotonic()) >= self._next_line:
            longer = max(FIRST_EVERY, SHARE * (now - self._began_at))
            self._next_line = now + (self._log_every or min(longer, LONGEST_EVERY))
            self._line(snapshot, mean_loss(status, self._shown))
        exchange = snapshot.share("exchanging")
        is_settled = min(status.seconds, time.monotonic() - self._began_at) > HINT_AFTER
        several = len(snapshot.working) > 1
        if exchange > HINT_ABOVE and several and is_settled and not self._hinted:
            self._hinted = True
            advice = "fewer workers may be as fast; a new run may have more --streams or --hidden"
            logger.info(f"the exchange takes {exchange:.0%} of the time: {advice}")

    def weights(self, weights: Weights) -> None:
        """Print a sample of what these weights write, once a version above 0."""
        if self._sample_length == 0 or weights.version <= self._sampled_version:
            return
        step = self._sampled_version = weights.version
        if every := self._sample_every:
            self._samples_left_out += max(0, (step - 1) // every - self._counted_to // every)
        self._counted_to = step
        model = parameters_of(self._dimensions, weights), self._vocabulary
        text = training_sample(model, seed=self._seed, step=step, length=self._sample_length)
        try:
            sys.stdout.write(f"--- step {step:,} ---\n{for_reading(text)}\n")
        except OSError as error:
            self._sample_length = 0
            logger.warning(f"standard output: {because(error)}: no more samples")

    def _line(self, snapshot: Snapshot, nats: float) -> None:
        self._shown = dataclasses.replace(snapshot.status, loss_nats_per_character=nats)
        values = {**dataclasses.asdict(self._shown), "workers": snapshot.working}
        step = f"step {step_of(snapshot.status.step, snapshot.status.steps)}"
        logger.info("  ".join([step, *self._words(snapshot, nats)]), extra={"values": values})

    def _words(self, snapshot: Snapshot, nats: float) -> list[str]:
        """Return the parts of the line, the most important first."""
        status, points = snapshot.status, tuple(self._recent)
        words = [] if math.isnan(nats) else [f"loss {nats:#.4g} nats a character"]
        if (validation := status.validation_loss_nats_per_character) is not None:
            words += [f"validation {validation:#.4g}", f"(step {status.validated:,})"]
        if status.divergence:
            words.append(status.divergence.split(":")[0])
        if status.waiting_for and not snapshot.working:  # at first, one is about to join
            words.append("no worker")
        if snapshot.working:
            if (left := history.seconds_left(points, status.steps)) is not None:
                words.append(f"{duration(left)} left")
            if snapshot.speed:
                words.append(f"{snapshot.speed:,.0f} characters/s")
            words.append(" ".join(snapshot.working))
            computing, exchanging = snapshot.share("computing"), snapshot.share("exchanging")
            waiting = snapshot.share("waiting")
            words.append(
                f"{computing:.0%} computing, {exchanging:.0%} exchange, {waiting:.0%} wait"
            )
        if snapshot.straggler:
            words.append(snapshot.straggler)
        if status.idle_workers:
            words.append(f"{status.idle_workers} idle")
        if dropped := {k: n for k, n in status.counts.items() if n and k not in USUAL}:
            words.append(", ".join(f"{k}: {n}" for k, n in sorted(dropped.items())))
        return [*words, f"smooth loss {status.smooth_loss_nats_per_character:#.4g}"]


def _bar() -> Progress:
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    text = TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True))
    columns = TextColumn("{task.fields[steps]}"), BarColumn(bar_width=BAR_WIDTH), text
    above = sys.stdout.isatty()  # the bar, which stays below the samples
    bar = Progress(
        *columns, console=console, transient=True, refresh_per_second=5, redirect_stdout=above
    )
    bar.add_task("", total=None, steps="", text="starting")
    return bar


def _fitting(words: list[str], room: int) -> str:
    """Return as many words as fit, the first ones."""
    while words and len("  ".join(words)) > room:
        words = words[:-1]
    return "  ".join(words)
