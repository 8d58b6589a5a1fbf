"""Judges what the workers do: whatever they read, compute and send is the reference's."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from manychar.protocol.client_session import ClientPhase
from manychar.protocol.effects import Compute, Effect, Send
from manychar.protocol.messages import (
    Gradient,
    Grant,
    Hello,
    Message,
    Refused,
    Reset,
    Unit,
    UnitState,
    Welcome,
    digest,
)
from manychar.protocol.worker import Worker
from tests.simulation.oracle import Oracle
from tests.simulation.violation import Violation


@dataclasses.dataclass(frozen=True)
class WorkerBefore:
    """How a worker stood before a message."""

    term: int
    foreign: bool
    leases: dict[int, int]
    memory: tuple[Any, ...]


class WorkerOracle:
    """The oracle of all workers of one run. In a tainted term any bytes may come."""

    def __init__(self, oracle: Oracle, *, disorder: bool) -> None:
        self.oracle = oracle
        self.reference = oracle.reference
        self.disorder = disorder
        self._computed: set[tuple[str, int, int, int]] = set()

    def before(self, machine: Worker, message: Message) -> WorkerBefore:
        """Note how the worker stands."""
        welcome = machine.session.welcome
        mine = (welcome.run_id, welcome.term) if welcome else None
        general = isinstance(message, Hello | Welcome | Refused | Reset)
        foreign = not general and (message.run_id, message.term) != mine  # type: ignore[union-attr]
        return WorkerBefore(
            welcome.term if welcome else 0, foreign, _leases(machine), _memory(machine)
        )

    def after(
        self, machine: Worker, message: Message, before: WorkerBefore, effects: Sequence[Effect]
    ) -> None:
        """A message of another term changes nothing; terms rise, and so do a shard's leases."""
        if before.foreign and (effects or _memory(machine) != before.memory):
            raise Violation("another term", f"a worker handled {type(message).__name__}")
        welcome = machine.session.welcome
        if welcome and welcome.term < before.term:
            raise Violation("term", f"a worker went from {before.term} to {welcome.term}")
        if welcome and welcome.term > before.term and machine._leases:
            raise Violation("another term", "a worker took leases into a new term")
        if isinstance(message, Grant) and not before.foreign:
            held = before.leases.get(message.shard, 0)
            if _leases(machine).get(message.shard, held) < held:
                raise Violation("older lease", f"{_leases(machine)}, had {before.leases}")

    def computes(self, machine: Worker, unit: Compute) -> None:
        """A unit is the lowest that the worker has, and starts from the reference's bytes."""
        waiting = [
            (other.step, other.shard)
            for other in machine._units()
            if other.flag == UnitState.QUEUED
        ]
        if waiting and min(waiting) < (unit.step, unit.shard):
            raise Violation("lowest first", f"{unit.step, unit.shard} before {min(waiting)}")
        self._check_computed_once(machine)
        welcome = machine.session.welcome
        broken = machine.session.hello.name in self.oracle.broken
        if broken or welcome is None or welcome.term in self.oracle.tainted:
            return
        if bytes(unit.weights) != self.reference.weights[unit.step]:
            raise Violation("unit", f"weights of step {unit.step}")
        if bytes(unit.hidden) != self.reference.hidden[unit.step][unit.shard]:
            raise Violation("unit", f"hidden state of step {unit.step}, shard {unit.shard}")

    def _check_computed_once(self, machine: Worker) -> None:
        computing = next((u for u in machine._units() if u.flag == UnitState.COMPUTING), None)
        welcome = machine.session.welcome
        if computing is None or welcome is None or self.disorder:
            return
        key = (machine.session.hello.instance, welcome.term, computing.lease, computing.step)
        if key in self._computed:
            raise Violation("computed twice", f"{computing} by {machine.session.hello.name}")
        self._computed.add(key)

    def must_deliver(self, machine: Worker) -> Callable[[], bool]:
        """Whether what is being computed is still wanted when it is through."""
        began_in = machine.session.welcome

        def still() -> bool:
            now_in = machine.session.welcome
            same = began_in is not None and now_in is not None and began_in.term == now_in.term
            return same and machine.phase is ClientPhase.CONNECTED

        return still

    def delivered(self, effects: Sequence[Effect], unit: Compute) -> None:
        """What was begun is sent, even if the lease has gone meanwhile."""
        if not any(isinstance(e, Send) and isinstance(e.message, Gradient) for e in effects):
            raise Violation("undelivered", f"step {unit.step}, shard {unit.shard}")

    def sends(self, name: str, gradient: Gradient) -> None:
        """Every gradient that an honest worker sends is the reference's."""
        if gradient.term in self.oracle.tainted or name in self.oracle.broken:
            return
        self.oracle.check_piece(gradient, "sent gradient")
        hidden = self.reference.hidden[gradient.step][gradient.shard]
        if gradient.hidden_digest != digest(hidden):
            raise Violation("sent gradient", f"step {gradient.step} names another state")


def _leases(machine: Worker) -> dict[int, int]:
    """The number of the lease on each shard that is held."""
    return {lease.shard: lease.number for lease in machine._leases.values()}


def _memory(machine: Worker) -> tuple[Any, ...]:
    units: tuple[Unit, ...] = machine._units()
    return (
        machine.phase,
        frozenset(machine._leases),
        frozenset(units),
        machine._step,
        machine._newest,
    )
