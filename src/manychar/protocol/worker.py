"""Worker: computes the gradients of the shards that it is leased.

    CONNECTING ──FingerprintComputed, or Welcome to the same term──▶ CONNECTED
    CONNECTED ──Welcome to a new run or term, Reset, or a silent server──▶ CONNECTING
    any ──Refused, Done, LeaveRequested, or the connect timeout──▶ ENDED

While it is connected, Grant and Weights bring leases, hidden states and weights; MailboxEmpty makes
it compute the lowest shard that it can, and Computed makes it send the gradient.

A welcome to a new run or term asks for the fingerprint, which the shell computes before it reads
another message. Messages from before the last Hello, and second answers to it, arrive while the
worker is connecting: the welcome replaces them, so they are ignored.

The worker is at the step of the newest weights that it has. A gradient is kept until the weights
of the next step arrive: they are its acknowledgement, and until then the same Grant brings the same
bytes again. The hidden state after step k is the input of step k + 1, unless a Grant brings it.
"""

import collections
import dataclasses

from manychar.protocol import events, messages
from manychar.protocol.client_session import ClientMachine, ClientPhase
from manychar.protocol.effects import STOPPED, Compute, ComputeFingerprint, Effect, Finish, Send
from manychar.protocol.events import FingerprintComputed, ProtocolError, rows
from manychar.protocol.messages import Frame, Gradient, Hello, Unit, UnitState, Welcome, digest

UNITS_REMEMBERED = 16  # a pause of the whole machine counts as slow work, and is forgotten


@dataclasses.dataclass
class _Lease:
    """What the worker holds under one lease, for its step."""

    number: int
    shard: int
    hidden: Frame | None = None
    queued: Compute | None = None
    finished: Gradient | None = None

    def advance(self, *, by: int) -> None:
        """Go to a later step: a finished gradient leaves its hidden state to the step after it."""
        self.hidden = self.finished.hidden if self.finished and by == 1 else None
        self.queued = self.finished = None


@dataclasses.dataclass(frozen=True)
class _InHand:
    """The unit that is being computed, and what its gradient will name."""

    welcome: Welcome
    lease: int
    hidden_digest: bytes
    unit: Compute


# 17 methods: one for each message and event of the table.
class Worker(ClientMachine):
    """The machine of one worker."""

    def __init__(self, hello: Hello, *, server: str, connect_timeout: float, now: float) -> None:
        super().__init__(hello, server=server, connect_timeout=connect_timeout, now=now)
        self.computing = 0.0
        self._slowest_pieces: collections.deque[float] = collections.deque(maxlen=UNITS_REMEMBERED)
        self._fingerprint: FingerprintComputed | None = None
        self._in_hand: _InHand | None = None
        self._leases: dict[int, _Lease] = {}
        self._step = -1
        self._newest: Frame = b""

    def _progress(self, run_id: str, term: int) -> messages.Heartbeat:
        slowest, units = max(self._slowest_pieces, default=0.0), self._units()
        return messages.Heartbeat(
            run_id=run_id, term=term, slowest=slowest, computing=self.computing, units=units
        )

    def _fingerprint_computed(self, event: FingerprintComputed, now: float) -> list[Effect]:
        self._fingerprint = event
        self._slowest_pieces.append(event.slowest)
        return self._ready(event)

    def _mailbox_empty(self, event: events.MailboxEmpty, now: float) -> list[Effect]:
        """Compute the lowest shard that is queued; all are queued for one step."""
        queued = [(lease, lease.queued) for lease in self._leases.values() if lease.queued]
        if self._in_hand is not None or not queued:
            return []
        lease, unit = min(queued, key=lambda pair: pair[0].shard)
        lease.queued = None
        welcome, hidden_digest = self.session.welcomed(), digest(unit.hidden)
        self._in_hand = _InHand(welcome, lease.number, hidden_digest, unit)
        return [unit]

    def _computed(self, event: events.Computed, now: float) -> list[Effect]:
        """Send the gradient, even if its lease has been revoked meanwhile."""
        in_hand, self._in_hand = self._in_hand, None
        if in_hand is None or (event.shard, event.step) != (in_hand.unit.shard, in_hand.unit.step):
            raise ProtocolError("computed a unit that is not in hand")
        self._slowest_pieces.append(event.slowest)
        self.computing += event.seconds
        run_id, term = in_hand.welcome.run_id, in_hand.welcome.term
        if self.phase is not ClientPhase.CONNECTED or not self.session.belongs(run_id, term):
            return []
        gradient = Gradient(
            run_id=run_id,
            term=term,
            lease=in_hand.lease,
            shard=event.shard,
            step=event.step,
            hidden_digest=in_hand.hidden_digest,
            loss=event.loss,
            gradient=event.gradient,
            hidden=event.hidden,
        )
        lease = self._leases.get(in_hand.lease)
        if lease is not None and event.step == self._step:
            lease.finished = gradient
        return [Send(gradient)]

    def _welcome(self, welcome: Welcome, now: float) -> list[Effect]:
        if self.session.is_stale(welcome):
            return []
        new = self.session.enter(welcome, now)
        if new:
            self._forget_everything()
            self._fingerprint = None
        if self._fingerprint is not None:
            return self._ready(self._fingerprint)
        self.phase = ClientPhase.CONNECTING
        return [ComputeFingerprint(welcome)]

    def _ready(self, fingerprint: FingerprintComputed) -> list[Effect]:
        welcome = self.session.welcomed()
        self.phase = ClientPhase.CONNECTED
        self.computing = 0.0
        ready = messages.Ready(
            run_id=welcome.run_id,
            term=welcome.term,
            fingerprint=fingerprint.fingerprint,
            libraries=fingerprint.libraries,
            slowest=fingerprint.slowest,
        )
        return [Send(ready)]

    def _grant(self, grant: messages.Grant, now: float) -> list[Effect]:
        if not self._adopt_weights(grant.step, grant.weights):
            return []
        lease = self._leases.get(grant.lease)
        if lease is None:
            held = [each.number for each in self._leases.values() if each.shard == grant.shard]
            newest = max(held, default=-1)
            if grant.lease < newest:
                return []
            self._leases.pop(newest, None)
            lease = self._leases[grant.lease] = _Lease(grant.lease, grant.shard)
        lease.hidden = grant.hidden
        return self._queue(lease, grant.ids, fresh=grant.fresh)

    def _weights(self, weights: messages.Weights, now: float) -> list[Effect]:
        if not self._adopt_weights(weights.version, weights.weights):
            return []
        effects: list[Effect] = []
        for unit, ids in zip(weights.units, weights.ids, strict=True):
            if (lease := self._leases.get(unit.lease)) is not None:
                effects += self._queue(lease, ids, fresh=bool(unit.flag))
        return effects

    def _adopt_weights(self, step: int, weights: Frame) -> bool:
        """Advance to the weights' step; return False where the worker is at a later one already."""
        if step > self._step:
            for lease in self._leases.values():
                lease.advance(by=step - self._step)
            self._step, self._newest = step, weights
        return step == self._step

    def _queue(self, lease: _Lease, ids: Frame, *, fresh: bool) -> list[Effect]:
        """Queue the lease's unit where its hidden state is here, or send its gradient again."""
        if lease.finished is not None:
            return [Send(lease.finished)]
        in_hand = self._in_hand
        if in_hand and (in_hand.lease, in_hand.unit.step) == (lease.number, self._step):
            return []
        if lease.hidden is not None:
            lease.queued = Compute(
                shard=lease.shard,
                step=self._step,
                fresh=fresh,
                weights=self._newest,
                hidden=lease.hidden,
                ids=ids,
            )
        return []

    def _revoke(self, revoke: messages.Revoke, now: float) -> list[Effect]:
        self._leases.pop(revoke.lease, None)
        return []

    def _reset(self, message: messages.Reset, now: float) -> list[Effect]:
        if not self.session.is_stale(message):
            self._forget_everything()
        return super()._reset(message, now)

    def _done(self, done: messages.Done, now: float) -> list[Effect]:
        self.phase = ClientPhase.ENDED
        reason = done.reason or "the run has ended"
        return [Finish(STOPPED if done.code else 0, reason)]  # STOPPED: the run may be resumed

    def _forget_everything(self) -> None:
        self._leases = {}
        self._step = -1
        self._newest = b""

    def _units(self) -> tuple[Unit, ...]:
        units = []
        if (in_hand := self._in_hand) is not None and in_hand.lease in self._leases:
            unit = in_hand.unit
            units = [Unit(in_hand.lease, unit.shard, unit.step, UnitState.COMPUTING)]
        for lease in self._leases.values():
            if lease.finished is not None:
                units.append(Unit(lease.number, lease.shard, self._step, UnitState.SENT))
            elif lease.queued is not None:
                units.append(Unit(lease.number, lease.shard, self._step, UnitState.QUEUED))
        return tuple(units)


_CONNECTING, _CONNECTED, _ENDED = ClientPhase
_ANY = (_CONNECTING, _CONNECTED)
_EARLY = (messages.Grant, messages.Weights, messages.Revoke, messages.Alive, messages.Reset)

Worker.table = {
    **ClientMachine.table,
    **rows(_ANY, (Welcome,), Worker._welcome, *_ANY),
    **rows((_CONNECTING,), _EARLY, Worker._ignore),
    **rows((_CONNECTING,), (FingerprintComputed,), Worker._fingerprint_computed, _CONNECTED),
    **rows((_CONNECTED,), (messages.Grant,), Worker._grant),
    **rows((_CONNECTED,), (messages.Weights,), Worker._weights),
    **rows((_CONNECTED,), (messages.Revoke,), Worker._revoke),
    **rows((_CONNECTED,), (messages.Reset,), Worker._reset, _CONNECTED, _CONNECTING),
    **rows(_ANY, (messages.Done,), Worker._done, _ENDED),
    **rows(_ANY, (events.HeartbeatDue,), Worker._heartbeat),
    **rows(_ANY, (events.Computed,), Worker._computed),
    **rows((_CONNECTING,), (events.MailboxEmpty,), Worker._ignore),
    **rows((_CONNECTED,), (events.MailboxEmpty,), Worker._mailbox_empty),
}
