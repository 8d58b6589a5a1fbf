"""Checks who holds what: leases of ranges, and what the server grants and sends under them."""

from typing import TYPE_CHECKING

from manychar.numerics.tree_reduction import Range
from manychar.protocol.lifecycle import RunPhase
from manychar.protocol.member import PeerState
from manychar.protocol.messages import Grant, Message, NewWeights, Peer, UnitResult
from manychar.protocol.range_cut import runs_of
from manychar.protocol.server import ParameterServer
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.oracle import Oracle


class LeaseOracle:
    """The leases of one world's server, as its messages tell of them."""

    def __init__(self, oracle: "Oracle") -> None:
        self._oracle = oracle
        self._leases: dict[int, tuple[Range, Peer]] = {}
        self._live: dict[int, int] = {}
        self._held: dict[int, tuple[Range, Peer]] = {}
        self.duplicates: set[int] = set()
        self._step = -1

    def server_starts(self) -> None:
        """No lease of another server is known."""
        self._leases, self._live, self._held, self.duplicates = {}, {}, {}, set()

    def check_leases(self, machine: ParameterServer) -> None:
        """Nobody holds what another holds; within a step all that is missing is held by somebody.

        Shards of a worker that was lost do not wait for the end of the step.
        """
        membership = machine.membership
        held: dict[int, int] = {}
        for number, lease in membership.leases.items():
            member = membership.members.get(lease.peer)
            if lease.number != number or member is None or member.state is not PeerState.WORKING:
                raise Violation("lease", f"number {number} at {lease.peer!r}")
            for shard in () if lease.duplicate else lease.numbers:
                if held.setdefault(shard, number) != number:
                    raise Violation("lease", f"shard {shard} is held twice")
        unheld = [shard for shard in machine.aggregation.missing() if shard not in held]
        open_now = machine.lifecycle.phase in (RunPhase.TRAINING, RunPhase.STOPPING)
        if open_now and unheld and membership.workers():
            raise Violation("unheld", f"nobody holds the shards {unheld}")
        self._check_stays(machine)

    def _check_stays(self, machine: ParameterServer) -> None:
        """Within a step a worker that is here loses no lease, but for a new one of the range."""
        before, step = self._held, self._step
        held = {
            each.number: (each.shards, each.peer) for each in machine.membership.leases.values()
        }
        self._held, self._step = held, machine.state.step
        here = {member.peer for member in machine.membership.workers()}
        for number in before.keys() - held.keys():
            if (
                step == self._step
                and before[number][1] in here
                and (before[number] not in held.values())
            ):
                raise Violation("taken", f"lease {number} of {before[number]} within a step")

    def check_ranges(self, machine: ParameterServer) -> None:
        """Between two steps each worker holds one range at most."""
        holders = [lease.peer for lease in machine.membership.leases.values()]
        if machine.lifecycle.phase is RunPhase.TRAINING and len(set(holders)) < len(holders):
            raise Violation("ranges", f"one worker holds several when a step begins: {holders}")

    def server_sends(self, peer: Peer, message: Message) -> None:
        """Check what a lease, and weights, may say."""
        if self._oracle.wrong is not None:
            return
        if isinstance(message, Grant):
            self._check_grant(peer, message)
        elif isinstance(message, NewWeights):
            self.check_new_weights(peer, message)

    def _check_grant(self, peer: Peer, grant: Grant) -> None:
        """A grant is of all contiguous shards of its lease that are not accepted yet."""
        oracle = self._oracle
        leased = (grant.lease_first, grant.lease_last)
        self._check_lease(grant.lease, leased, peer, begins=True)
        runs = [
            run
            for now in (oracle.next, oracle.next_before)
            for run in runs_of(i for i in range(leased[0], leased[1] + 1) if now[i] == grant.step)
        ]
        if (grant.first, grant.last) not in runs:
            raise Violation("grant", f"{name_of(grant)}, not {runs}")
        hidden = b"".join(self._oracle.reference.hidden[grant.step][grant.first : grant.last + 1])
        if bytes(grant.hidden) != hidden:
            raise Violation("grant", f"hidden states of {name_of(grant)}")
        self._check_inputs(grant)

    def check_new_weights(self, peer: Peer, message: NewWeights) -> None:
        """Weights alone are for a holder from whom all its shards were accepted before."""
        shards = (message.first, message.last)
        before = {self._oracle.accepted_from.get(i) for i in range(shards[0], shards[1] + 1)}
        if before != {(message.step - 1, peer, message.lease)}:
            raise Violation("weights", f"{name_of(message)} after {before}")
        self._check_lease(message.lease, shards, peer, begins=False)
        self._check_inputs(message)

    def _check_inputs(self, message: Grant | NewWeights) -> None:
        step, streams = message.step, self._oracle.reference.streams
        if step >= self._oracle.plan.steps:
            raise Violation("grant", f"{name_of(message)} of {self._oracle.plan.steps} steps")
        batches = [streams.batch_at(i, step) for i in range(message.first, message.last + 1)]
        for what, wanted, sent in (
            ("fresh", batches[0].fresh, message.fresh),
            ("weights", self._oracle.reference.weights[step], bytes(message.weights)),
            ("ids", b"".join(each.ids.tobytes() for each in batches), bytes(message.ids)),
        ):
            if wanted != sent:
                raise Violation("grant", f"{what} of {name_of(message)}")

    def _check_lease(self, number: int, shards: Range, peer: Peer, *, begins: bool) -> None:
        """One live lease a shard, duplicates aside, with a number that was never another's."""
        numbers = range(shards[0], shards[1] + 1)
        held = self._oracle.machine.membership.leases.get(number)
        if held is not None and held.duplicate:
            self.duplicates.add(number)
        if number not in self._leases and begins:
            newest = max(self._live.get(i, 0) for i in numbers)
            if number <= newest:
                raise Violation("lease", f"number {number} after {newest}")
            self._leases[number] = (shards, peer)
            if number not in self.duplicates:
                self._live |= dict.fromkeys(numbers, number)
        live = {self._live.get(shard) for shard in numbers} | {number} & self.duplicates
        if (
            self._leases.get(number) != (shards, peer)
            or number not in live
            or (len(live) > 1 and number not in self.duplicates)
        ):
            raise Violation("lease", f"number {number} for {shards} at {peer!r} is not live")


def name_of(unit: UnitResult | Grant | NewWeights) -> str:
    """Return a unit in words."""
    return f"step {unit.step}, shards {unit.first} … {unit.last}"
