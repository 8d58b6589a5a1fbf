"""Worker: computes the gradients of the shards that it is leased.

    CONNECTING ──Welcome to a new run or term──▶ FINGERPRINTING ──FingerprintComputed──▶ WORKING
    CONNECTING ──Welcome to the same term──▶ WORKING ──Reset, or a silent server──▶ CONNECTING
    any ──Refused, Done, LeaveRequested, or the connect timeout──▶ ENDED

While it works, Grant and Weights bring leases, hidden states and weights; MailboxEmpty makes it
compute the lowest (step, shard) that it can, and Computed makes it send the gradient.

What was sent before the last Hello, or to it again, arrives while it is connecting or computes its
fingerprint: the welcome replaces it, so it is ignored.

The worker is at the step of the newest weights that it has. A gradient is kept until the weights
of the next step arrive: they are its acknowledgement, and until then the same Grant brings the same
bytes again. The hidden state after step k is the input of step k + 1, from here or from a Grant.
"""

import collections
import dataclasses
import enum

from manychar.protocol import events, messages
from manychar.protocol.client_session import ClientMachine, ClientSession
from manychar.protocol.effects import STOPPED, Compute, ComputeFingerprint, Effect, Finish, Send
from manychar.protocol.events import DeadlinePassed, FingerprintComputed, ProtocolError, rows
from manychar.protocol.messages import Frame, Gradient, Hello, Unit, UnitState, Welcome, digest

UNITS_REMEMBERED = 16  # a pause of the whole machine counts as slow work, and is forgotten


class WorkerPhase(enum.Enum):
    """The phase of a worker."""

    CONNECTING = "connecting"
    FINGERPRINTING = "fingerprinting"
    WORKING = "working"
    ENDED = "ended"


_CONNECTING, _FINGERPRINTING, _WORKING, _ENDED = WorkerPhase


@dataclasses.dataclass
class _Lease:
    """What the worker holds under one lease, for its step; `queued` are `fresh` and ids."""

    number: int
    shard: int
    hidden: Frame | None = None
    queued: tuple[bool, Frame] | None = None
    finished: Gradient | None = None

    def advance(self, *, by: int) -> None:
        """Go to a later step: what was finished leaves its hidden state to the step after it."""
        self.hidden = self.finished.hidden if self.finished and by == 1 else None
        self.queued = self.finished = None


# 19 methods: one for each message and event of the table.
class Worker(ClientMachine[WorkerPhase]):
    """The machine of one worker."""

    def __init__(self, hello: Hello, *, server: str, connect_timeout: float, now: float) -> None:
        session = ClientSession(hello, server=server, connect_timeout=connect_timeout, now=now)
        super().__init__(session, (_CONNECTING, _WORKING, _ENDED))
        self.computing = 0.0
        self._pieces: collections.deque[float] = collections.deque(maxlen=UNITS_REMEMBERED)
        self._fingerprint: FingerprintComputed | None = None
        self._fingerprints_due = 0
        self._in_hand: tuple[tuple[str, int], int, bytes] | None = None
        self._computing: Compute | None = None
        self._step = -1
        self._newest: Frame = b""
        self._forget_everything()

    def _heartbeat(self, event: DeadlinePassed | events.HeartbeatDue, now: float) -> list[Effect]:
        if now < self.session.next_heartbeat:
            return []  # before the units are listed
        slowest = max(self._pieces, default=0.0)
        return self.session.heartbeat(
            now, units=self._units(), slowest=slowest, computing=self.computing
        )

    def _fingerprint_computed(self, event: FingerprintComputed, now: float) -> list[Effect]:
        self._fingerprints_due -= 1
        if self._fingerprints_due:
            return []  # asked again since, for another run
        self._fingerprint = event
        self._pieces.append(event.slowest)
        return self._ready()

    def _mailbox_empty(self, event: events.MailboxEmpty, now: float) -> list[Effect]:
        """Compute the lowest (step, shard) that can be computed."""
        if self._in_hand is not None:
            return []
        able = [
            lease for lease in self._leases.values() if lease.queued and lease.hidden is not None
        ]
        return [self._take_in_hand(min(able, key=lambda lease: lease.shard))] if able else []

    def _take_in_hand(self, lease: _Lease) -> Compute:
        hidden = lease.hidden
        if lease.queued is None or hidden is None:
            raise ProtocolError("nothing to compute under this lease")
        (fresh, ids), lease.queued = lease.queued, None
        self._in_hand = (self._identity(), lease.number, digest(hidden))
        self._computing = Compute(
            shard=lease.shard,
            step=self._step,
            fresh=fresh,
            weights=self._newest,
            hidden=hidden,
            ids=ids,
        )
        return self._computing

    def _computed(self, event: events.Computed, now: float) -> list[Effect]:
        """Send the result, even if the lease has gone meanwhile."""
        unit = self._computing
        asked = None if unit is None else (unit.shard, unit.step)
        if self._in_hand is None or unit is None or (event.shard, event.step) != asked:
            raise ProtocolError("computed without having been asked")
        (run, term), number, hidden_digest = self._in_hand
        self._in_hand = self._computing = None
        self._pieces.append(event.slowest)
        self.computing += event.seconds
        if self.state is not WorkerPhase.WORKING or (run, term) != self._identity():
            return []
        gradient = Gradient(
            run=run,
            term=term,
            lease=number,
            shard=unit.shard,
            step=unit.step,
            hidden_digest=hidden_digest,
            loss=event.loss,
            gradient=event.gradient,
            hidden=event.hidden,
        )
        lease = self._leases.get(number)
        if lease is not None and unit.step == self._step:
            lease.finished = gradient
        return [Send(gradient)]

    def _welcome(self, welcome: Welcome, now: float) -> list[Effect]:
        if self.session.is_past(welcome):
            return []
        new = self.session.enter(welcome, now)
        if new:
            self._forget_everything()
            self._fingerprint = None
        if self._fingerprint is not None:
            return self._ready()
        if self.state is WorkerPhase.FINGERPRINTING and not new:
            return []
        self.state = WorkerPhase.FINGERPRINTING
        self._fingerprints_due += 1
        return [ComputeFingerprint(welcome)]

    def _ready(self) -> list[Effect]:
        welcome, fingerprint = self.session.welcome, self._fingerprint
        if welcome is None or fingerprint is None:
            raise ProtocolError("ready without a welcome or a fingerprint")
        self.state = WorkerPhase.WORKING
        self.computing = 0.0
        ready = messages.Ready(
            run=welcome.run,
            term=welcome.term,
            fingerprint=fingerprint.fingerprint,
            libraries=fingerprint.libraries,
            slowest=fingerprint.slowest,
        )
        return [Send(ready)]

    def _grant(self, grant: messages.Grant, now: float) -> list[Effect]:
        if not self._take(grant.step, grant.weights):
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
        return self._queue(lease, (grant.fresh, grant.ids))

    def _weights(self, weights: messages.Weights, now: float) -> list[Effect]:
        if not self._take(weights.version, weights.weights):
            return []
        effects: list[Effect] = []
        for unit, ids in zip(weights.units, weights.ids, strict=True):
            if (lease := self._leases.get(unit.lease)) is not None:
                effects += self._queue(lease, (bool(unit.flag), ids))
        return effects

    def _take(self, step: int, weights: Frame) -> bool:
        """Take the weights of a step, unless they are there; False where the step is over."""
        if step > self._step:
            for lease in self._leases.values():
                lease.advance(by=step - self._step)
            self._step, self._newest = step, weights
        return step == self._step

    def _queue(self, lease: _Lease, queued: tuple[bool, Frame]) -> list[Effect]:
        """Queue the lease's unit, or send again what came of it."""
        if lease.finished is not None:
            return [Send(lease.finished)]
        if not self._is_in_hand(lease):
            lease.queued = queued
        return []

    def _revoke(self, revoke: messages.Revoke, now: float) -> list[Effect]:
        self._leases.pop(revoke.lease, None)
        return []

    def _reset(self, message: messages.Reset, now: float) -> list[Effect]:
        if not self.session.is_past(message):
            self._forget_everything()
        return super()._reset(message, now)

    def _done(self, done: messages.Done, now: float) -> list[Effect]:
        self.state = WorkerPhase.ENDED
        reason = done.reason or "the run has ended"
        return [Finish(STOPPED if done.code else 0, reason)]  # it may go on: then come again

    def _forget_everything(self) -> None:
        self._leases: dict[int, _Lease] = {}
        self._newest = b""
        self._step = -1

    def _identity(self) -> tuple[str, int]:
        welcome = self.session.welcome
        return (welcome.run, welcome.term) if welcome else ("", -1)

    def _is_in_hand(self, lease: _Lease) -> bool:
        unit = self._computing
        if unit is None or self._in_hand is None:
            return False
        return (self._in_hand[1], unit.step) == (lease.number, self._step)

    def _units(self) -> tuple[Unit, ...]:
        """Return the progress with each unit that it holds."""
        units = []
        if (unit := self._computing) is not None and self._in_hand is not None:
            number = self._in_hand[1]
            if number in self._leases:
                units = [Unit(number, unit.shard, unit.step, UnitState.COMPUTING)]
        for lease in self._leases.values():
            if lease.finished is not None:
                units.append(Unit(lease.number, lease.shard, self._step, UnitState.SENT))
            elif lease.queued and lease.hidden is not None:
                units.append(Unit(lease.number, lease.shard, self._step, UnitState.QUEUED))
        return tuple(units)


_NOT_WORKING = (_CONNECTING, _FINGERPRINTING)
_ANY = (*_NOT_WORKING, _WORKING)

Worker.table = {
    **rows((_CONNECTING,), (Welcome,), Worker._welcome, _CONNECTING, _FINGERPRINTING, _WORKING),
    **rows((_FINGERPRINTING,), (Welcome,), Worker._welcome),
    **rows((_WORKING,), (Welcome,), Worker._welcome, _WORKING, _FINGERPRINTING),
    **rows(
        _NOT_WORKING,
        (messages.Grant, messages.Weights, messages.Revoke, messages.Alive, messages.Reset),
        Worker._ignore,
    ),
    **rows((_WORKING,), (messages.Grant,), Worker._grant),
    **rows((_WORKING,), (messages.Weights,), Worker._weights),
    **rows((_WORKING,), (messages.Revoke,), Worker._revoke),
    **rows((_WORKING,), (messages.Alive,), Worker._ignore),
    **rows((_WORKING,), (messages.Reset,), Worker._reset, _WORKING, _CONNECTING),
    **rows(_ANY, (messages.Refused,), Worker._refused, _ENDED),
    **rows(_ANY, (messages.Done,), Worker._done, _ENDED),
    **rows(_ANY, (events.LeaveRequested,), Worker._leave, _ENDED),
    **rows(_ANY, (events.HeartbeatDue,), Worker._heartbeat),
    **rows(_ANY, (events.Suspended,), Worker._suspended),
    **rows(_ANY, (events.Computed,), Worker._computed),
    **rows(_NOT_WORKING, (events.MailboxEmpty,), Worker._ignore),
    **rows((_WORKING,), (events.MailboxEmpty,), Worker._mailbox_empty),
    **rows(
        (_FINGERPRINTING,),
        (FingerprintComputed,),
        Worker._fingerprint_computed,
        _FINGERPRINTING,
        _WORKING,
    ),
    **rows((_CONNECTING,), (DeadlinePassed,), Worker._deadline_passed, _CONNECTING, _ENDED),
    **rows((_FINGERPRINTING,), (DeadlinePassed,), Worker._deadline_passed, _FINGERPRINTING, _ENDED),
    **rows((_WORKING,), (DeadlinePassed,), Worker._deadline_passed, _WORKING, _CONNECTING),
}
