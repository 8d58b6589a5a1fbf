"""Worker: computes the gradients of the shards that it is leased.

    CONNECTING ──FingerprintComputed, or Welcome to the same term──▶ CONNECTED
    CONNECTED ──Welcome to a new run or term, Reset, or a silent server──▶ CONNECTING
    any ──Refused, Done, LeaveRequested, or the connect timeout──▶ ENDED

While it is connected, Grant and NewWeights bring leases, hidden states and weights. MailboxEmpty
makes it compute one shard: the next one of the unit in hand, or the first of the lowest unit that
it can compute. After the last shard it adds up the sums of the unit's cover and sends them.

A welcome to a new run or term asks for the fingerprint, which the shell computes before it reads
another message. Messages from before the last Hello, and second answers to it, arrive while the
worker is connecting: the welcome replaces them, so they are ignored.

The worker is at the step of the newest weights that it has. A unit is kept until the weights of the
next step arrive: they are its acknowledgement, and until then the same Grant brings the same bytes
again. The hidden states after step k are the inputs of step k + 1, unless a Grant brings them. A
unit whose step is over is abandoned between two shards; one whose lease is revoked is finished.
"""

import collections

from manychar.numerics.tree_reduction import Range, TreeSum
from manychar.protocol import events, messages
from manychar.protocol.client_session import CONNECTED, CONNECTING, ENDED, NOT_ENDED, ClientMachine
from manychar.protocol.codec import expect
from manychar.protocol.effects import STOPPED, ComputeFingerprint, Effect, Finish, Send
from manychar.protocol.events import FingerprintComputed, ProtocolError, rows
from manychar.protocol.held_units import HeldLease, UnitInHand
from manychar.protocol.messages import (
    Frame,
    Hello,
    NewWeights,
    RunAndTerm,
    Unit,
    UnitState,
    Welcome,
    unit_fields,
)
from manychar.protocol.packed_header import Expected
from manychar.protocol.range_cut import count_of, numbers_of
from manychar.protocol.unit_payload import equal_parts

SHARDS_REMEMBERED = 16  # a pause of the whole machine counts as slow work, and is forgotten


# More methods than elsewhere: one for each message and event of the table.
class Worker(ClientMachine):
    """The machine of one worker."""

    def __init__(self, hello: Hello, *, server: str, connect_timeout: float, now: float) -> None:
        super().__init__(hello, server=server, connect_timeout=connect_timeout, now=now)
        self._longest_pieces: collections.deque[float] = collections.deque(maxlen=SHARDS_REMEMBERED)
        self._fingerprint: FingerprintComputed | None = None
        self._in_hand: UnitInHand | None = None
        self._leases: dict[int, HeldLease] = {}
        self._step = -1
        self._newest: Frame = b""
        self._is_fresh = False  # the text starts again at this step
        self._heard = 0
        self._expected_after = -1
        self.expected_weights: Expected = {}

    def _progress(self, run_and_term: RunAndTerm) -> messages.Heartbeat:
        longest, units = max(self._longest_pieces, default=0.0), self._units()
        self.session.is_idle = not self._leases and self._in_hand is None
        return messages.Heartbeat(
            **run_and_term, longest_piece=longest, heard=self._heard, units=units
        )

    def _fingerprint_computed(self, event: FingerprintComputed, now: float) -> list[Effect]:
        self._fingerprint = event
        self._longest_pieces.append(event.longest_piece)
        return self._ready(event)

    def _mailbox_empty(self, event: events.MailboxEmpty, now: float) -> list[Effect]:
        """Compute the next shard of the unit in hand, or of the lowest that is queued."""
        if self.abandons_unit:
            self._in_hand = None
        if self._in_hand is None and (unit := self._lowest_queued()) is not None:
            self._in_hand = self._begin(*unit)
        if self._in_hand is not None:
            return [self._in_hand.compute_next()]
        if self._expected_after < self._step:
            self._expect_weights()
        return []

    def _expect_weights(self) -> None:
        """Make what the next weights' headers begin with, while there is nothing to compute."""
        self._expected_after, step = self._step, self._step + 1
        known = self.session.welcomed().run_and_term
        self.expected_weights = dict(
            expect(NewWeights, unit_fields(known, lease=number, shards=lease.shards, step=step))
            for number, lease in self._leases.items()
        )

    @property
    def has_unit(self) -> bool:
        """Whether shards of the unit in hand are still to be computed."""
        return self._in_hand is not None

    @property
    def abandons_unit(self) -> bool:
        return self._in_hand is not None and self._is_over(self._in_hand)

    def _is_over(self, unit: UnitInHand) -> bool:
        """Whether the unit's step is applied, or its term over."""
        return unit.step < self._step or not self.session.belongs(unit.run_and_term)

    def _lowest_queued(self) -> tuple[HeldLease, Range] | None:
        """Return the unit with the lowest shards; all are queued for one step."""
        queued = [(lease, shards) for lease in self._leases.values() for shards in lease.queued]
        return min(queued, key=lambda unit: unit[1], default=None)

    def _begin(self, lease: HeldLease, shards: Range) -> UnitInHand:
        welcome = self.session.welcomed()
        return UnitInHand(
            run_and_term=welcome.run_and_term,
            lease=lease.number,
            shards=shards,
            step=self._step,
            weights=self._newest,
            fresh=self._is_fresh,
            ids=lease.queued.pop(shards),
            hidden=[lease.hidden[shard] for shard in numbers_of(shards)],
            sums=TreeSum(welcome.dimensions.shards),
        )

    def _computed(self, event: events.Computed, now: float) -> list[Effect]:
        """Add the shard to its unit; send the whole one, even if its lease was revoked."""
        unit = self._in_hand
        if unit is None or (event.shard, event.step) != (unit.next_shard, unit.step):
            raise ProtocolError("computed a shard that is not in hand")
        self._longest_pieces.append(event.longest_piece)
        unit.add(event)
        if len(unit.losses) < len(unit.hidden):
            return []
        self._in_hand = None
        if self.phase is not CONNECTED or self._is_over(unit):
            return []
        result = unit.result(event.weights_digest, self.session.welcomed())
        lease = self._leases.get(unit.lease)
        if lease is not None and unit.step == self._step:
            lease.finish(unit.shards, result, unit.next_hidden)
        self.session.sent_unit(now)
        return [Send(result)]

    def _welcome(self, welcome: Welcome, now: float) -> list[Effect]:
        if self.session.is_stale(welcome):
            return []
        new, waited = self.session.enter(welcome, now), self.session.end_of_wait()
        if new:
            self._forget_everything()
            self._fingerprint = None
        if self._fingerprint is not None:
            return waited + self._ready(self._fingerprint)
        self.phase = CONNECTING
        return [ComputeFingerprint(welcome)]

    def _ready(self, fingerprint: FingerprintComputed) -> list[Effect]:
        welcome = self.session.welcomed()
        self.phase = CONNECTED
        self._heard = 0  # the server counts anew
        ready = messages.Ready(
            **welcome.run_and_term,
            fingerprint=fingerprint.fingerprint,
            libraries=fingerprint.libraries,
            longest_piece=fingerprint.longest_piece,
        )
        return [Send(ready)]

    def _grant(self, grant: messages.Grant, now: float) -> list[Effect]:
        if not self._adopt_weights(grant):
            return []
        lease = self._leases.get(grant.lease)
        if lease is None:
            shards = grant.lease_first, grant.lease_last
            overlapping = [
                each.number
                for each in self._leases.values()
                if each.shards[0] <= shards[1] and shards[0] <= each.shards[1]
            ]
            if any(number > grant.lease for number in overlapping):
                return []
            for number in overlapping:
                del self._leases[number]
            lease = self._leases[grant.lease] = HeldLease(grant.lease, shards)
            self.session.note_range(now)
        numbers = numbers_of(grant.shards)
        lease.hidden |= zip(numbers, equal_parts(grant.hidden, len(numbers)), strict=True)
        return self._queue(lease, grant.shards, equal_parts(grant.ids, len(numbers)))

    def _new_weights(self, message: messages.NewWeights, now: float) -> list[Effect]:
        if not self._adopt_weights(message):
            return []
        lease = self._leases.get(message.lease)
        if lease is None or lease.shards != message.shards:
            return []
        ids = equal_parts(message.ids, count_of(message.shards))
        return self._queue(lease, lease.shards, ids)

    def _adopt_weights(self, new: messages.Grant | messages.NewWeights) -> bool:
        """Note the message, and advance to its step; False where the worker is at a later one."""
        self._heard = max(self._heard, new.number)
        if new.step > self._step:
            for lease in self._leases.values():
                lease.advance(by=new.step - self._step)
            self._step, self._newest, self._is_fresh = new.step, new.weights, new.fresh
        return new.step == self._step

    def _queue(self, lease: HeldLease, shards: Range, ids: list[Frame]) -> list[Effect]:
        """Queue a unit whose hidden states are here, or send its result again."""
        if shards in lease.finished:
            return [Send(lease.finished[shards])]
        unit = self._in_hand
        same = unit is not None and (unit.lease, unit.shards) == (lease.number, shards)
        if unit is not None and same and not self._is_over(unit):
            return []
        if all(shard in lease.hidden for shard in numbers_of(shards)):
            lease.queued[shards] = ids
        return []

    def _revoke(self, revoke: messages.Revoke, now: float) -> list[Effect]:
        self._leases.pop(revoke.lease, None)
        return []

    def _reset(self, message: messages.Reset, now: float) -> list[Effect]:
        if not self.session.is_stale(message):
            self._forget_everything()
        return super()._reset(message, now)

    def _done(self, done: messages.Done, now: float) -> list[Effect]:
        self.phase = ENDED
        reason = done.reason or "the run has ended"
        return [Finish(STOPPED if done.code else 0, reason)]  # STOPPED: the run may be resumed

    def _forget_everything(self) -> None:
        self._leases = {}
        self._step = self._expected_after = -1
        self._newest = b""
        self._heard = 0

    def _units(self) -> tuple[Unit, ...]:
        units = []
        if (unit := self._in_hand) is not None and not self._is_over(unit):
            units = [Unit(unit.lease, *unit.shards, unit.step, UnitState.COMPUTING)]
        for lease in self._leases.values():
            units += [Unit(lease.number, *s, self._step, UnitState.QUEUED) for s in lease.queued]
            units += [Unit(lease.number, *s, self._step, UnitState.SENT) for s in lease.finished]
        return tuple(units)


class WorkerInServer(Worker):
    """The server's own share: what is revoked is abandoned, so that the server is free at once."""

    def _is_over(self, unit: UnitInHand) -> bool:
        return super()._is_over(unit) or unit.lease not in self._leases


_EARLY = (messages.Grant, messages.NewWeights, messages.Revoke, messages.Alive, messages.Reset)

Worker.table = {
    **ClientMachine.table,
    **rows(NOT_ENDED, (Welcome,), Worker._welcome, *NOT_ENDED),
    **rows((CONNECTING,), _EARLY, Worker._ignore),
    **rows((CONNECTING,), (FingerprintComputed,), Worker._fingerprint_computed, CONNECTED),
    **rows((CONNECTED,), (messages.Grant,), Worker._grant),
    **rows((CONNECTED,), (messages.NewWeights,), Worker._new_weights),
    **rows((CONNECTED,), (messages.Revoke,), Worker._revoke),
    **rows((CONNECTED,), (messages.Reset,), Worker._reset, CONNECTED, CONNECTING),
    **rows(NOT_ENDED, (messages.Done,), Worker._done, ENDED),
    **rows(NOT_ENDED, (events.HeartbeatDue,), Worker._heartbeat),
    **rows(NOT_ENDED, (events.Computed,), Worker._computed),
    **rows((CONNECTING,), (events.MailboxEmpty,), Worker._ignore),
    **rows((CONNECTED,), (events.MailboxEmpty,), Worker._mailbox_empty),
}
