"""Judging: the loss of each checkpoint on the held-out text, and whether the run still gets better.

A judge beside the server reads each checkpoint that is on disk. Where the run is to stop when it
gets no better, the decision on one checkpoint takes effect at the next one, and no step after that
is applied before the decision is known: so where a run ends depends on what it was told, never on
how fast the judge is. Only checkpoints at the stated interval count for it: where a run was stopped
and resumed between them does not show.
"""

import math
from collections.abc import Mapping


class EarlyStopping:
    """What is known of the checkpoints: `verdicts` are nats a character by step.

    `every` is the interval of checkpoints in steps, `patience` how many of them may be no better
    than the best before them until the run ends, 0 for any number.
    """

    def __init__(
        self, validation_losses: Mapping[int, float], *, on: bool, every: int, patience: int
    ) -> None:
        self.validation_losses = dict(validation_losses)
        self.awaited: set[int] = set()
        self._asked: set[int] = set()
        self._on = on
        self._every = every
        self._patience = patience if on else 0

    def expect(self, step: int) -> None:
        """Await the verdict on a checkpoint, from before it is on disk."""
        if self._on and step not in self.validation_losses:
            self.awaited.add(step)

    def is_to_be_asked(self, step: int) -> bool:
        """Whether this verdict is awaited, and nobody was asked for it before this call."""
        new = step in self.awaited and step not in self._asked
        self._asked |= {step} if new else set()
        return new

    def take(self, step: int, nats: float) -> bool:
        """Take a verdict; return whether this is the best checkpoint so far."""
        self.awaited.discard(step)
        self.validation_losses[step] = nats
        return self.best == step

    def give_up(self) -> None:
        """Judge nothing more."""
        self._on = False
        self.awaited.clear()

    def pass_over(self, step: int) -> None:
        """Await no verdict on a checkpoint that is not there."""
        self.awaited.discard(step)

    @property
    def decides(self) -> bool:
        """Whether verdicts decide where the run ends."""
        return self._patience > 0

    @property
    def best(self) -> int | None:
        """The step with the least loss, the first of them; None before there is one."""
        finite = [
            (nats, step) for step, nats in self.validation_losses.items() if math.isfinite(nats)
        ]
        return min(finite)[1] if finite else None

    @property
    def newest(self) -> int | None:
        """The newest step that is judged."""
        return max(self.validation_losses, default=None)

    def depends_on(self, step: int) -> bool:
        """Whether where the run ends may depend on the verdict on this checkpoint."""
        return self.decides and self._counts(step)

    def waits(self, step: int) -> bool:
        """Whether no step may be applied to the state of `step` before a verdict comes."""
        return self.decides and self._counts(step) and bool(self.awaited_before(step))

    def awaited_before(self, step: int) -> list[int]:
        """Return the steps below `step` whose verdicts are awaited and count."""
        return sorted(each for each in self.awaited if each < step and self._counts(each))

    @property
    def summary(self) -> str:
        """Which checkpoint is the best, in words; nothing before there is one."""
        if (best := self.best) is None:
            return ""
        nats = self.validation_losses[best]
        return f"the best checkpoint is that of step {best:,}: {nats:.4f} nats a character"

    def is_over(self, step: int) -> bool:
        """Whether the run ends at this checkpoint, by the decision on the one before it."""
        if not (self.decides and self._counts(step)) or self.waits(step):
            return False
        validated = sorted(
            each for each in self.validation_losses if each < step and self._counts(each)
        )
        best = min(validated, key=self._order, default=0)
        return sum(each > best for each in validated) >= self._patience

    def _order(self, step: int) -> tuple[float, int]:
        nats = self.validation_losses[step]
        return (nats if math.isfinite(nats) else math.inf, step)

    def _counts(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0
