"""Checks a relay: what it sends up and down is the reference's, and it hides nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from manychar.numerics.tree_reduction import Range
from manychar.protocol.client_session import ClientPhase
from manychar.protocol.effects import Effect, Send
from manychar.protocol.member import PeerState
from manychar.protocol.messages import Grant, Heartbeat, Message, NewWeights, Peer, UnitResult
from manychar.protocol.relay import Relay
from manychar.protocol.server import TICK
from tests.simulation.lease_oracle import name_of
from tests.simulation.violation import Violation

TOLD_WITHIN = 4  # times a silence, each with four heartbeats that may be lost

if TYPE_CHECKING:
    from tests.simulation.world import World


class RelayOracle:
    """The oracle of one life of a relay. `_accepted` is by shard: step, sender and lease."""

    def __init__(self, world: "World", name: str) -> None:
        self._world = world
        self._name = name
        self._accepted: dict[int, tuple[int, Peer, int]] = {}
        self._before: set[int] = set()
        self._strange = False
        self._sessions: set[int] = set()
        self._told_at = 0.0

    def begins(self, machine: Relay) -> None:
        """A term or session above begins: nothing of the one before counts."""
        self._accepted = {}
        session = machine.below.spec.session
        if session in self._sessions:
            raise Violation("another term", f"{self._name} has session {session} again")
        self._sessions.add(session)

    def before(self, machine: Relay, peer: Peer, message: Message) -> None:
        """Note which results are here."""
        below, self._strange = machine.below, False
        self._before = set(below.aggregation._open.senders)
        if machine.dimensions is None or not isinstance(message, UnitResult):
            return
        self._strange = (
            machine.phase is ClientPhase.CONNECTED
            and below.membership.state_of(peer) in (PeerState.WORKING, PeerState.SILENT)
            and message.run_and_term == below.spec.run_and_term
            and message.step == machine._step
            and not machine.leased().issuperset(range(message.first, message.last + 1))
        )

    def after(
        self, machine: Relay, peer: Peer, message: Message, effects: Sequence[Effect]
    ) -> None:
        """Note which shards were accepted, and check all that the relay holds."""
        below = machine.below
        if machine.dimensions is None:
            return
        if isinstance(message, UnitResult):
            for shard in below.aggregation._open.senders.keys() - self._before:
                self._accepted[shard] = message.step, peer, message.lease
            if self._strange and not any(_passes(each, message) for each in effects):
                raise Violation("not passed up", f"{self._name}: {name_of(message)}")
        self._check_sums(machine)

    def _check_sums(self, machine: Relay) -> None:
        """The sums of nodes are disjoint, of what is accepted, and the reference's."""
        step = machine.below.aggregation
        held = step._sums.nodes
        shards = [shard for node in held for shard in range(node[0], node[1] + 1)]
        if sorted(shards) != sorted(step._open.senders):
            raise Violation("sums", f"{self._name} has those of {list(held)}")
        for node, value in () if self._world.wrong_begun else held.items():
            if value.tobytes() != self._world.reference.sums[step.state.step].get(node):
                raise Violation("sums", f"{self._name}: of {node} at step {step.state.step}")
        if len(step._open.delivered) > 2 * self._world.plan.shards - 1:
            raise Violation("unbounded", f"{len(step._open.delivered)} sums of one step")

    def ticked(self, machine: Relay, now: float) -> None:
        """Whoever is silent for too long is not counted any more."""
        if machine.dimensions is None:
            return
        membership = machine.below.membership
        looked = machine.below._next_tick == now + TICK  # limits shrink when a unit is accepted
        for member in membership.workers() if looked else ():
            if now - member.heard_at >= membership.limit(member) + TICK:
                raise Violation("lost", f"{member.name} is not: silent since {member.heard_at:.1f}")
        held: set[int] = set()
        for lease in membership.leases.values():
            if membership.state_of(lease.peer) is not PeerState.WORKING:
                raise Violation("lease", f"{self._name}: number {lease.number} at {lease.peer!r}")
            if not lease.duplicate and not held.isdisjoint(lease.numbers):
                raise Violation("lease", f"{self._name}: shards of {lease.numbers} are held twice")
            held.update(() if lease.duplicate else lease.numbers)
        unheld = set(machine.below.aggregation.missing()) - held
        banned = machine.below.admission.banned.keys()
        of_this_term = machine.below.spec.term == self._world.oracle.term
        connected = machine.phase is ClientPhase.CONNECTED and self._world.server is not None
        if banned >= self._world.disk.banned.keys() or not (of_this_term and connected):
            self._told_at = now
        if now - self._told_at > TOLD_WITHIN * self._world.plan.silence:
            raise Violation("banned", f"{self._name} has {list(banned)} since {self._told_at:.1f}")
        if unheld and membership.workers():
            raise Violation("unheld", f"{self._name}: nobody holds the shards {unheld}")

    def sends_up(self, machine: Relay, message: Message) -> None:
        """A result is the reference's, of its newest weights; a heartbeat counts who is here."""
        if isinstance(message, Heartbeat):
            members = machine.below.membership.members.values()
            here = [m.workers for m in members if m.state is PeerState.WORKING]
            if message.workers != sum(here):
                raise Violation("hidden", f"{self._name} tells of {message.workers}, not of {here}")
        if isinstance(message, UnitResult):
            if message.step != machine._step:
                raise Violation("stale", f"{self._name} sends {name_of(message)}")
            if not message.run_and_term == machine.session.welcomed().run_and_term:
                raise Violation("another term", f"{self._name} sends {name_of(message)}")
            passed_up = message.lease == 0 and "confused" in self._world.plan.faults
            if not self._world.wrong_begun and not passed_up:
                self._world.oracle.check_sent(message, "relayed result")

    def sends_down(self, machine: Relay, peer: Peer, message: Message) -> None:
        """Check a unit that it asks for: the inputs, and that it is one of those above."""
        if not isinstance(message, Grant | NewWeights):
            return
        if message.term != machine.session.welcomed().term:
            raise Violation("another term", f"{self._name}: {name_of(message)}")
        if self._world.wrong_begun:
            return
        reference, step = self._world.reference, message.step
        batches = [
            reference.streams.batch_at(i, step) for i in range(message.first, message.last + 1)
        ]
        for what, wanted, found in (
            ("fresh", batches[0].fresh, message.fresh),
            ("weights", reference.weights[step], bytes(message.weights)),
            ("ids", b"".join(each.ids.tobytes() for each in batches), bytes(message.ids)),
        ):
            if wanted != found:
                raise Violation("grant", f"{self._name}: {what} of {name_of(message)}")
        shards: Range = (message.first, message.last)
        numbers = range(shards[0], shards[1] + 1)
        if isinstance(message, Grant):
            if bytes(message.hidden) != b"".join(
                reference.hidden[step][numbers[0] : numbers[-1] + 1]
            ):
                raise Violation("grant", f"{self._name}: hidden states of {name_of(message)}")
        else:
            before = {self._accepted.get(shard) for shard in numbers}
            if before != {(step - 1, peer, message.lease)}:
                raise Violation("weights", f"{self._name}: {name_of(message)} after {before}")
        if not machine.leased().issuperset(numbers):
            raise Violation("lease", f"{self._name}: {name_of(message)} is not leased to it")


def _passes(effect: Effect, result: UnitResult) -> bool:
    """Whether a unit is sent up unchanged."""
    if not (isinstance(effect, Send) and effect.to is None):
        return False
    sent = effect.message
    return isinstance(sent, UnitResult) and (sent.first, sent.last, sent.payload.pack()) == (
        result.first,
        result.last,
        result.payload.pack(),
    )
