"""All that the page shows of a run at one moment: a View, which every change replaces.

Everything has a bound: where a list has grown to it, every second entry is dropped, so that the
whole run stays visible, more coarsely.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from manychar.observability.history import History, Point, thinned

MOST_POINTS = 600
MOST_SAMPLES = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A text that the weights of a step write, and the hidden states over it, (characters, H)."""

    step: int
    text: str
    states: NDArray[np.float32]


# Many fields: one for each part of the page.
@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A run as it is known now.

    `live` says whether more is to come, `activity` in words what the run does; `facts` are names
    and values of the run's definition; `workers` are the rows of the table of workers and relays,
    `without_relays` the number of workers in it; `checkpoint` is (step, seconds since the epoch) of
    the newest, whose age is shown while live.
    """

    source: str
    run: str = ""
    live: bool = True
    activity: str = "connecting"
    steps: int = 0
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    history: History = dataclasses.field(default_factory=History)
    best: int | None = None
    workers: Sequence[Sequence[str]] = ()
    without_relays: int = 0
    samples: tuple[Sample, ...] = ()
    checkpoint: tuple[int, float] | None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def of_run(self, run: str, facts: Mapping[str, str]) -> "View":
        """Return a view of this run: nothing of another run stays."""
        return self if run == self.run else View(source=self.source, run=run, facts=facts)

    def with_point(self, point: Point, validation: tuple[int, float] | None) -> Self:
        """Add a point. A restarted server repeats steps: what was later is dropped."""
        old = self.history
        points = [each for each in old.points if each.step < point.step]
        losses = {step: nats for step, nats in old.validation_losses if step <= point.step}
        if validation is not None:
            losses[validation[0]] = validation[1]
        history = History((*points, point), tuple(sorted(losses.items()))).thinned(MOST_POINTS)
        samples = tuple(sample for sample in self.samples if sample.step <= point.step)
        return dataclasses.replace(self, history=history, samples=samples)

    def with_sample(self, sample: Sample) -> Self:
        """Add a sample, or replace that of its step."""
        others = [other for other in self.samples if other.step != sample.step]
        ordered = sorted([*others, sample], key=lambda each: each.step)
        return dataclasses.replace(self, samples=thinned(ordered, MOST_SAMPLES))
