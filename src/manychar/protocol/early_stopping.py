"""Early stopping: the validation loss of each checkpoint, and whether it still falls.

A process beside the server validates each checkpoint that is on disk. Early stopping is
deterministic: the decision on one checkpoint takes effect at the next one, where training pauses
until it is known. So where a run ends depends on its definition, never on how fast validation is.
Only checkpoints at the stated interval count: it makes no difference where a run was stopped and
resumed between them. Without early stopping, too, training pauses where validation is far behind:
every checkpoint is validated before it is removed, and the best one is always the same.
"""

import math
from collections.abc import Mapping

from manychar.numerics.run_definition import Definition
from manychar.protocol.run_operation import Operation

MOST_WAITING = 3
"""Checkpoints that wait for their validation loss while training goes on."""


class EarlyStopping:
    """The known `validation_losses`, in nats a character by step, and the awaited ones.

    The run ends after `stop_when_no_better` checkpoints that are no better than the best before
    them, 0 for never.
    """

    def __init__(
        self, validation_losses: Mapping[int, float], definition: Definition, operation: Operation
    ) -> None:
        self.validation_losses = dict(validation_losses)
        self.awaited: set[int] = set()
        self._asked: set[int] = set()
        self._on = definition.validation > 0
        self._every = operation.checkpoint_every
        self._patience = operation.stop_when_no_better if self._on else 0

    def expect(self, step: int) -> None:
        """Await the validation loss of a checkpoint, from before it is on disk."""
        if self._on and step not in self.validation_losses:
            self.awaited.add(step)

    def must_ask(self, step: int) -> bool:
        """Whether this loss is awaited, and was not asked for before this call."""
        new = step in self.awaited and step not in self._asked
        self._asked |= {step} & self.awaited
        return new

    def record(self, step: int, nats: float) -> None:
        self.awaited.discard(step)
        self.validation_losses[step] = nats

    def end(self) -> None:
        self._on = False
        self.awaited.clear()

    @property
    def decides(self) -> bool:
        """Whether validation losses decide where the run ends."""
        return self._patience > 0

    @property
    def best(self) -> int | None:
        """The step with the least loss, the first of them; None before there is one."""
        losses = self.validation_losses.items()
        finite = [(nats, step) for step, nats in losses if math.isfinite(nats)]
        return min(finite)[1] if finite else None

    def depends_on(self, step: int) -> bool:
        """Whether where the run ends may depend on the validation loss of this checkpoint."""
        return self.decides and self._counts(step)

    def waits(self, step: int) -> bool:
        """Whether no step may be applied to the state of `step` before a loss is known."""
        if not (self.awaited and self._counts(step)):
            return False
        before = self.awaited_before(step)
        return len(before) >= MOST_WAITING or (self.decides and bool(before))

    def awaited_before(self, step: int) -> list[int]:
        """Return the steps below `step` whose validation losses are awaited and count."""
        return sorted(each for each in self.awaited if each < step and self._counts(each))

    @property
    def summary(self) -> str:
        """Which checkpoint is the best, in words; nothing before there is one."""
        if (best := self.best) is None:
            return ""
        nats = self.validation_losses[best]
        return f"the best checkpoint is that of step {best:,}: {nats:#.5g} nats a character"

    def ends_at(self, step: int) -> bool:
        """Whether the run ends at this checkpoint, by the decision on the one before it."""
        if not self._patience or not self.depends_on(step) or self.waits(step):
            return False
        losses = {
            each: nats if math.isfinite(nats) else math.inf
            for each, nats in sorted(self.validation_losses.items())
            if each < step and self._counts(each)
        }
        best = min(losses, key=losses.__getitem__, default=0)
        return sum(each > best for each in losses) >= self._patience

    def reason(self, step: int) -> str:
        number = f"{self._patience} checkpoint{'s' if self._patience > 1 else ''}"
        decided = f"no better for {number} up to step {step - self._every:,}"
        how = f"as decided one checkpoint before: {decided} (--stop-when-no-better)"
        return f"stopped early at step {step:,}, {how}"

    def _counts(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0
