"""The simulated disk: checkpoints are written one after the other, beside the loop, and slowly."""

import dataclasses
import functools
from typing import TYPE_CHECKING

from manychar.numerics.training_step import TrainingState
from manychar.protocol.effects import Save
from manychar.protocol.events import CheckpointWritten, Validated

if TYPE_CHECKING:
    from tests.simulation.server_shell import ServerShell
    from tests.simulation.world import World


class Disk:
    """Where checkpoints go, one after the other; a crash loses those still under way."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.saved = {0: world.reference.states[0]}
        self.recovery: TrainingState | None = None
        self.validation_losses: dict[int, float] = {}
        self.banned: dict[str, str] = {}
        self.resume_before: int | None = None
        self._free_at = 0.0

    def newest(self) -> TrainingState:
        """Return the newest checkpoint."""
        newest = self.saved[max(self.saved)]
        return self.recovery if self.recovery and self.recovery.step > newest.step else newest

    def recover(self) -> None:
        """Set aside the checkpoints that the next server is not to resume from."""
        if (before := self.resume_before) is not None:
            if self.recovery and self.recovery.step >= before:
                self.recovery = None
            self.saved = {step: state for step, state in self.saved.items() if step < before}
            self.validation_losses = {
                step: nats for step, nats in self.validation_losses.items() if step < before
            }
            self.resume_before = None
        self._free_at = 0.0

    def unvalidated(self) -> tuple[int, ...]:
        """Return the checkpoints on disk, at the interval, without a validation loss."""
        every = self.world.plan.checkpoint_every
        return tuple(
            step for step in self.saved if step % every == 0 and step not in self.validation_losses
        )

    def validate(self, shell: "ServerShell", step: int) -> None:
        """Have a checkpoint validated, beside the loop; a crash of the server loses it."""
        seconds = self.world.plan.validation_seconds * self.world.chance.random()
        self.world.after(seconds, functools.partial(self._validated, shell, step))

    def _validated(self, shell: "ServerShell", step: int) -> None:
        if self.world.server is shell and not self.world.over:
            assert step in self.saved
            self.validation_losses[step] = self.world.loss_at(step)
            effects = shell.machine.handle(
                Validated(step, self.validation_losses[step]), self.world.now
            )
            self.world.oracle.check_step(shell.machine)
            shell.carry_out(effects)

    def save(self, shell: "ServerShell", save: Save) -> None:
        """Write a state, beside the loop; what is written is what it holds in the end."""
        world = self.world
        world.oracle.check_state(save.state, "checkpoint")
        begins = max(world.now, self._free_at)
        self._free_at = begins + world.plan.disk_seconds * world.chance.uniform(0.2, 1.5)
        world.after(self._free_at - world.now, functools.partial(self._written, shell, save))

    def _written(self, shell: "ServerShell", save: Save) -> None:
        if self.world.server is not shell:
            self._free_at = 0.0
            return
        self.world.oracle.check_state(save.state, "checkpoint")
        step, self.recovery = save.state.step, None
        if save.for_recovery:
            self.recovery = copy_of(save.state)
        else:
            self.saved[step] = copy_of(save.state)
        self.world.log(lambda: f"checkpoint {step} is on disk")
        written = CheckpointWritten(step, for_recovery=save.for_recovery)
        shell.carry_out(shell.machine.handle(written, shell.world.now))


def copy_of(state: TrainingState) -> TrainingState:
    """Return the state in arrays of its own."""
    return dataclasses.replace(
        state,
        parameters=state.parameters.like(state.parameters.flat.copy()),
        memory=state.memory.copy(),
        hidden=state.hidden.copy(),
    )
