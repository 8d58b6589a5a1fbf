"""Worker: computes the gradient of whatever shard it is leased.

    state      event               does
    KNOCKING   Welcome             to a new run or term: Prove, PROVING; to the same: Ready, WORKING
    PROVING    proved              Ready, WORKING
    WORKING    Grant, Weights      notes leases, states and weights; what is finished is sent again
    WORKING    mailbox_empty       Compute of its lowest (step, shard)
    WORKING    computed            Gradient
    WORKING    StartAfresh         drops everything, KNOCKING
    any        Refused, Done       Finish, GONE
    any        leave               Goodbye and Finish, GONE

The worker is at the step of the newest weights that it has. A gradient is kept until the weights
of the next step arrive: they are its acknowledgement, and until then the same Grant brings the same
bytes again. The hidden state after step k is the input of step k + 1, from here or from a Grant.
"""

import collections
import dataclasses
import enum
from collections.abc import Callable
from typing import Any

from manychar.protocol.client_session import ClientSession
from manychar.protocol.effects import (
    RUN_FAILED,
    STOPPED,
    Compute,
    ComputeFingerprint,
    Effect,
    FingerprintResult,
    Finish,
    PeerError,
    ProtocolError,
    Result,
    Send,
)
from manychar.protocol.messages import (
    Alive,
    Dimensions,
    Done,
    Frame,
    Goodbye,
    Gradient,
    Grant,
    Hello,
    Message,
    Ready,
    Refused,
    Reset,
    Revoke,
    Unit,
    UnitState,
    Weights,
    Welcome,
    digest,
    one_line,
)

UNITS_REMEMBERED = 16


class WorkerPhase(enum.Enum):
    """Where the worker stands."""

    CONNECTING = "knocking"
    FINGERPRINTING = "proving"
    WORKING = "working"
    ENDED = "gone"


@dataclasses.dataclass(frozen=True)
class _Queued:
    fresh: bool
    ids: Frame


@dataclasses.dataclass
class _Lease:
    """What the worker holds under one lease, for its step."""

    number: int
    shard: int
    hidden: Frame | None = None
    queued: _Queued | None = None
    finished: Gradient | None = None

    def advance(self, *, by: int) -> None:
        """Go to a later step: what was finished leaves its hidden state to the step after it."""
        self.hidden = self.finished.hidden if self.finished and by == 1 else None
        self.queued = self.finished = None


class Worker:
    """The machine of one worker. See the table above."""

    def __init__(self, hello: Hello, *, server: str, patience: float, now: float) -> None:
        self.state = WorkerPhase.CONNECTING
        self.session = ClientSession(hello, server=server, patience=patience, now=now)
        self.computing = 0.0
        self._pieces: collections.deque[float] = collections.deque(maxlen=UNITS_REMEMBERED)
        self._proof: FingerprintResult | None = None
        self._proofs_due = 0
        self._in_hand: tuple[tuple[str, int], int, bytes] | None = None
        self._computing: Compute | None = None
        self._step = -1
        self._newest: Frame = b""
        self._forget_everything()

    @property
    def dimensions(self) -> Dimensions | None:
        """The run's dimensions, once they are known."""
        return self.session.dimensions

    @property
    def slowest(self) -> float:
        """The longest piece of work of the last few units, in seconds.

        A pause of the whole machine counts as one, and is to be forgotten.
        """
        return max(self._pieces, default=0.0)

    def deadline(self) -> float | None:
        """When the next tick is due."""
        return None if self.state is WorkerPhase.ENDED else self.session.deadline()

    def receive(self, message: Message, now: float) -> list[Effect]:
        """Take a message from the server. What belongs to another run or term is passed over."""
        if self.state is WorkerPhase.ENDED:
            return []
        handler = _TABLE.get((self.state, type(message)))
        if handler is None:
            raise PeerError(f"{type(message).__name__} to a worker that is {self.state.value}")
        self.session.heard(now)
        if not self.session.concerns(message):
            return []
        return handler(self, message, now)

    def tick(self, now: float) -> list[Effect]:
        """Knock, beat, and notice a silent server. Call it with the mailbox read to its end."""
        if self.state is WorkerPhase.ENDED:
            return []
        effects = self.session.tick(now)
        if self.session.knocking and self.state is WorkerPhase.WORKING:
            self.state = WorkerPhase.CONNECTING
        if any(isinstance(effect, Finish) for effect in effects):
            self.state = WorkerPhase.ENDED
        return effects + self.beat(now)

    def beat(self, now: float) -> list[Effect]:
        """Send a heartbeat if one is due; to be called while computing, too."""
        if not self.session.beat_is_due(now):
            return []
        return self.session.beat(
            now, units=self._units(), slowest=self.slowest, computing=self.computing
        )

    def leave(self, code: int, reason: str) -> list[Effect]:
        """End in good order, with this exit code: hand back the leases and go."""
        effects: list[Effect] = []
        if self.state is not WorkerPhase.ENDED and (welcome := self.session.welcome):
            effects = [Send(Goodbye(run=welcome.run, term=welcome.term, reason=one_line(reason)))]
        self.state = WorkerPhase.ENDED
        return [*effects, Finish(code, reason)]

    def proved(self, proof: FingerprintResult, now: float) -> list[Effect]:
        """Take the fingerprint that Prove asked for."""
        if self.state is not WorkerPhase.FINGERPRINTING:
            raise ProtocolError(f"proved in state {self.state.value}")
        self._proofs_due -= 1
        if self._proofs_due:
            return []  # asked again since, for another run
        self._proof = proof
        self._pieces.append(proof.slowest)
        return self._ready()

    def mailbox_empty(self, now: float) -> list[Effect]:
        """Take the lowest (step, shard) that can be computed: every message has been read."""
        if self.state is not WorkerPhase.WORKING or self._in_hand is not None:
            return []
        able = [
            lease
            for lease in self._leases.values()
            if lease.queued is not None and lease.hidden is not None
        ]
        return [self._take_in_hand(min(able, key=lambda lease: lease.shard))] if able else []

    def _take_in_hand(self, lease: _Lease) -> Compute:
        queued, hidden = lease.queued, lease.hidden
        if queued is None or hidden is None:
            raise ProtocolError("nothing to compute under this lease")
        lease.queued = None
        self._in_hand = (self._identity(), lease.number, digest(hidden))
        self._computing = Compute(
            shard=lease.shard,
            step=self._step,
            fresh=queued.fresh,
            weights=self._newest,
            hidden=hidden,
            ids=queued.ids,
        )
        return self._computing

    def computed(self, result: Result, now: float) -> list[Effect]:
        """Take what Compute asked for, and send it, even if the lease has gone meanwhile."""
        if self._in_hand is None or self._computing is None:
            raise ProtocolError("computed without having been asked")
        (run, term), number, hidden_digest = self._in_hand
        unit = self._computing
        self._in_hand = self._computing = None
        self._pieces.append(result.slowest)
        self.computing += result.seconds
        if self.state is not WorkerPhase.WORKING or (run, term) != self._identity():
            return []
        gradient = Gradient(
            run=run,
            term=term,
            lease=number,
            shard=unit.shard,
            step=unit.step,
            hidden_digest=hidden_digest,
            loss=result.loss,
            gradient=result.gradient,
            hidden=result.hidden,
        )
        lease = self._leases.get(number)
        if lease is not None and unit.step == self._step:
            lease.finished = gradient
        return [Send(gradient)]

    # What the table's rows do.

    def _welcome(self, welcome: Welcome, now: float) -> list[Effect]:
        if self.session.is_past(welcome):
            return []
        new = self.session.enter(welcome, now)
        if new:
            self._forget_everything()
            self._proof = None
        if self._proof is not None:
            return self._ready()
        if self.state is WorkerPhase.FINGERPRINTING and not new:
            return []
        self.state = WorkerPhase.FINGERPRINTING
        self._proofs_due += 1
        return [ComputeFingerprint(welcome)]

    def _ready(self) -> list[Effect]:
        welcome, proof = self.session.welcome, self._proof
        if welcome is None or proof is None:
            raise ProtocolError("ready without a welcome or a proof")
        self.state = WorkerPhase.WORKING
        self.computing = 0.0
        ready = Ready(
            run=welcome.run,
            term=welcome.term,
            fingerprint=proof.fingerprint,
            libraries=proof.libraries,
            slowest=proof.slowest,
        )
        return [Send(ready)]

    def _grant(self, grant: Grant, now: float) -> list[Effect]:
        if not self._take(grant.step, grant.weights):
            return []
        lease = self._leases.get(grant.lease)
        if lease is None:
            newest = max(
                (held.number for held in self._leases.values() if held.shard == grant.shard),
                default=-1,
            )
            if grant.lease < newest:
                return []
            self._leases.pop(newest, None)
            lease = self._leases[grant.lease] = _Lease(grant.lease, grant.shard)
        lease.hidden = grant.hidden
        return self._queue(lease, _Queued(grant.fresh, grant.ids))

    def _weights(self, weights: Weights, now: float) -> list[Effect]:
        if not self._take(weights.version, weights.weights):
            return []
        effects: list[Effect] = []
        for unit, ids in zip(weights.units, weights.ids, strict=True):
            if (lease := self._leases.get(unit.lease)) is not None:
                effects += self._queue(lease, _Queued(bool(unit.flag), ids))
        return effects

    def _take(self, step: int, weights: Frame) -> bool:
        """Take the weights of a step, unless they are there; False where the step is over."""
        if step > self._step:
            for lease in self._leases.values():
                lease.advance(by=step - self._step)
            self._step, self._newest = step, weights
        return step == self._step

    def _queue(self, lease: _Lease, queued: _Queued) -> list[Effect]:
        """Queue the lease's unit, or send again what came of it."""
        if lease.finished is not None:
            return [Send(lease.finished)]
        if not self._is_in_hand(lease):
            lease.queued = queued
        return []

    def _revoke(self, revoke: Revoke, now: float) -> list[Effect]:
        self._leases.pop(revoke.lease, None)
        return []

    def _pass_over(self, message: Message, now: float) -> list[Effect]:
        """Nothing to do: it was heard, or comes from before the last Hello."""
        return []

    def _reset(self, message: Reset, now: float) -> list[Effect]:
        if self.session.is_past(message):
            return []
        self._forget_everything()
        self.state = WorkerPhase.CONNECTING
        self.session.knock(now)
        return self.session.tick(now)

    def _refused(self, refused: Refused, now: float) -> list[Effect]:
        self.state = WorkerPhase.ENDED
        return [Finish(RUN_FAILED, f"the server refused this worker: {refused.reason}")]

    def _done(self, done: Done, now: float) -> list[Effect]:
        self.state = WorkerPhase.ENDED
        return [Finish(STOPPED if done.code else 0, done.reason)]  # it may go on: then come again

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
        """How far it is with each unit it holds."""
        units = []
        if (unit := self._computing) is not None and self._in_hand is not None:
            number = self._in_hand[1]
            if number in self._leases:
                units = [Unit(number, unit.shard, unit.step, UnitState.COMPUTING)]
        for lease in self._leases.values():
            if lease.finished is not None:
                units.append(Unit(lease.number, lease.shard, self._step, UnitState.SENT))
            elif lease.queued is not None and lease.hidden is not None:
                units.append(Unit(lease.number, lease.shard, self._step, UnitState.QUEUED))
        return tuple(units)


_Handler = Callable[[Worker, Any, float], list[Effect]]

_TABLE: dict[tuple[WorkerPhase, type[Any]], _Handler] = {
    (WorkerPhase.CONNECTING, Welcome): Worker._welcome,
    (WorkerPhase.FINGERPRINTING, Welcome): Worker._welcome,
    (WorkerPhase.WORKING, Welcome): Worker._welcome,
    (WorkerPhase.WORKING, Grant): Worker._grant,
    (WorkerPhase.WORKING, Weights): Worker._weights,
    (WorkerPhase.WORKING, Revoke): Worker._revoke,
    (WorkerPhase.WORKING, Alive): Worker._pass_over,
    (WorkerPhase.WORKING, Reset): Worker._reset,
    # What was sent before the last Hello, or to it again, is overtaken by the welcome.
    **{
        (state, late): Worker._pass_over
        for state in (WorkerPhase.CONNECTING, WorkerPhase.FINGERPRINTING)
        for late in (Grant, Weights, Revoke, Alive, Reset)
    },
    **{
        (state, end): handler
        for state in (WorkerPhase.CONNECTING, WorkerPhase.FINGERPRINTING, WorkerPhase.WORKING)
        for end, handler in ((Refused, Worker._refused), (Done, Worker._done))
    },
}
