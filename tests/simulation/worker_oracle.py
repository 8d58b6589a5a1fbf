"""Checks what the workers do: whatever they read, compute and send is the reference's."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from manychar.numerics.tree_reduction import Range
from manychar.protocol.client_session import ClientPhase
from manychar.protocol.effects import Compute, Effect, Send
from manychar.protocol.messages import (
    Grant,
    Hello,
    Message,
    NewWeights,
    Refused,
    Reset,
    RunAndTerm,
    UnitResult,
    UnitState,
    Welcome,
)
from manychar.protocol.worker import Worker
from tests.simulation.oracle import Oracle
from tests.simulation.violation import Violation


@dataclasses.dataclass(frozen=True)
class WorkerBefore:
    """The state of a worker before a message."""

    run_and_term: RunAndTerm | None
    foreign: bool
    leases: dict[int, Range]
    memory: tuple[Any, ...]

    @property
    def term(self) -> int:
        """The term that it is in."""
        return self.run_and_term["term"] if self.run_and_term else 0


class WorkerOracle:
    """The oracle of all workers of one run. In a tainted term any bytes may come."""

    def __init__(self, oracle: Oracle, *, disorder: bool, at_ease: bool) -> None:
        self.oracle = oracle
        self.reference = oracle.reference
        self.disorder = disorder
        self.at_ease = at_ease
        self._computed: set[tuple[Any, ...]] = set()

    def before(self, machine: Worker, message: Message) -> WorkerBefore:
        """Note the worker's state."""
        welcome = machine.session.welcome
        mine = welcome.run_and_term if welcome else None
        general = isinstance(message, Hello | Welcome | Refused | Reset)
        foreign = not general and message.run_and_term != mine  # type: ignore[union-attr]
        return WorkerBefore(mine, foreign, _leases(machine), _memory(machine))

    def after(
        self, machine: Worker, message: Message, before: WorkerBefore, effects: Sequence[Effect]
    ) -> None:
        """A message of another term or session changes nothing; terms rise; leases are disjoint."""
        if before.foreign and (effects or _memory(machine) != before.memory):
            raise Violation("another term", f"a worker handled {type(message).__name__}")
        welcome = machine.session.welcome
        if welcome and welcome.term < before.term:
            raise Violation("term", f"a worker went from {before.term} to {welcome.term}")
        if welcome and welcome.run_and_term != before.run_and_term and machine._leases:
            raise Violation("another term", "a worker took leases into a new term")
        if before.foreign:
            return
        if isinstance(message, Grant):
            _check_newest(_leases(machine), message, before)
        if isinstance(message, Grant | NewWeights):
            _check_kept(message, effects)
        _check_finished(machine)

    def computes(self, machine: Worker, unit: Compute) -> None:
        """A shard is the next one of its unit, and starts from the reference's bytes.

        A unit is the lowest that the worker has, and is abandoned where its step or term is over.
        """
        welcome, in_hand = machine.session.welcome, machine._in_hand
        assert welcome is not None
        assert in_hand is not None
        if unit.step < machine._step or in_hand.run_and_term != welcome.run_and_term:
            raise Violation("abandoned", f"step {unit.step}, shard {unit.shard} is not")
        shards = in_hand.shards
        if unit.shard == shards[0]:
            waiting = [(u.first, u.last) for u in machine._units() if u.state == UnitState.QUEUED]
            if waiting and min(waiting) < shards:
                raise Violation("lowest first", f"{shards} before {min(waiting)}")
        self._check_computed_once(machine, unit)
        broken = machine.session.hello.name in self.oracle.broken
        if broken or welcome.term in self.oracle.tainted:
            return
        if bytes(unit.weights) != self.reference.weights[unit.step]:
            raise Violation("unit", f"weights of step {unit.step}")
        if bytes(unit.hidden) != self.reference.hidden[unit.step][unit.shard]:
            raise Violation("unit", f"hidden state of step {unit.step}, shard {unit.shard}")

    def _check_computed_once(self, machine: Worker, unit: Compute) -> None:
        """Under one lease no unit is computed twice; without faults no shard, by anybody."""
        in_hand = machine._in_hand
        assert in_hand is not None
        term = tuple(in_hand.run_and_term.values())
        key: tuple[Any, ...] = (term, unit.step, unit.shard)
        if not self.at_ease or in_hand.lease in self.oracle.lease_oracle.duplicates:
            key = (machine.session.hello.instance, in_hand.lease, in_hand.shards, *key)
        if key in self._computed and not self.disorder:
            raise Violation("computed twice", f"{key} by {machine.session.hello.name}")
        self._computed.add(key)

    def must_deliver(self, machine: Worker, unit: Compute) -> Callable[[], bool]:
        """Whether this is a unit's last shard, and still wanted when it has been computed."""
        in_hand = machine._in_hand
        last = in_hand is not None and unit.shard == in_hand.shards[1]
        began_in = machine.session.welcome

        def still() -> bool:
            now_in = machine.session.welcome
            same = (
                began_in is not None
                and now_in is not None
                and began_in.run_and_term == now_in.run_and_term
            )
            connected = machine.phase is ClientPhase.CONNECTED
            return last and same and connected and machine._step <= unit.step

        return still

    def delivered(self, effects: Sequence[Effect], unit: Compute) -> None:
        """What was begun is sent, even if the lease has gone meanwhile."""
        if not any(isinstance(e, Send) and isinstance(e.message, UnitResult) for e in effects):
            raise Violation("undelivered", f"step {unit.step}, shard {unit.shard}")

    def sends(self, name: str, result: UnitResult) -> None:
        """Every result that an honest worker sends is the reference's."""
        if result.term not in self.oracle.tainted and name not in self.oracle.broken:
            self.oracle.check_sent(result, "sent result")


def _check_newest(leases: dict[int, Range], grant: Grant, before: WorkerBefore) -> None:
    """A grant ends what the worker holds of its shards under older leases, and nothing newer."""
    older = {number for number in before.leases if number > grant.lease} - leases.keys()
    shards = [shard for first, last in leases.values() for shard in range(first, last + 1)]
    if older or len(set(shards)) < len(shards):
        raise Violation("older lease", f"{leases} after {grant.lease}, had {before.leases}")


def _check_kept(message: Grant | NewWeights, effects: Sequence[Effect]) -> None:
    """What is finished is sent again only for exactly its unit."""
    asked = (message.lease, message.first, message.last, message.step)
    for effect in effects:
        if isinstance(effect, Send) and isinstance(sent := effect.message, UnitResult):
            kept = (sent.lease, sent.first, sent.last, sent.step)
            if kept != asked:
                raise Violation("kept", f"{kept} for {asked}")


def _check_finished(machine: Worker) -> None:
    """What is kept is of the newest weights, and no more than its lease's shards."""
    for lease in machine._leases.values():
        steps = {result.step for result in lease.finished.values()}
        shards = [shard for unit in lease.finished for shard in range(unit[0], unit[1] + 1)]
        if steps - {machine._step} or len(set(shards)) < len(shards):
            raise Violation("unbounded", f"{list(lease.finished)} of {steps} are kept")


def _leases(machine: Worker) -> dict[int, Range]:
    """The shards of each lease that is held, by number."""
    return {lease.number: lease.shards for lease in machine._leases.values()}


def _memory(machine: Worker) -> tuple[Any, ...]:
    return (
        machine.phase,
        frozenset(machine._leases),
        frozenset(machine._units()),
        machine._step,
        machine._newest,
    )
