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

A gradient is kept until the weights that follow its step arrive: they are its acknowledgement, and
until then the same Grant brings the same bytes again. Steps of one shard chain: the
hidden state after step k is the input of step k + 1, from here or from the server's next Grant.
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
    version: int
    fresh: bool
    ids: Frame


@dataclasses.dataclass
class _Lease:
    """What the worker holds under one lease, by step."""

    number: int
    shard: int
    hidden: dict[int, Frame] = dataclasses.field(default_factory=dict)
    queued: dict[int, _Queued] = dataclasses.field(default_factory=dict)
    finished: dict[int, Gradient] = dataclasses.field(default_factory=dict)

    def forget_below(self, step: int) -> None:
        """Drop what steps below `step` needed: they are applied."""
        for kept in (self.hidden, self.queued, self.finished):
            for old in [k for k in kept if k < step]:
                del kept[old]


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
            (step, lease.shard, lease)
            for lease in self._leases.values()
            for step, queued in lease.queued.items()
            if step in lease.hidden and queued.version in self._versions
        ]
        if not able:
            return []
        step, shard, lease = min(able, key=lambda unit: unit[:2])
        return [self._take_in_hand(lease, step, shard)]

    def _take_in_hand(self, lease: _Lease, step: int, shard: int) -> Compute:
        queued, hidden = lease.queued.pop(step), lease.hidden[step]
        self._in_hand = (self._identity(), lease.number, digest(hidden))
        self._computing = Compute(
            shard=shard,
            step=step,
            version=queued.version,
            fresh=queued.fresh,
            weights=self._versions[queued.version],
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
            version=unit.version,
            hidden_digest=hidden_digest,
            loss=result.loss,
            gradient=result.gradient,
            hidden=result.hidden,
        )
        lease = self._leases.get(number)
        if lease is not None and unit.step >= self._acknowledged:
            lease.finished[unit.step] = gradient
            lease.hidden[unit.step + 1] = result.hidden
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
        if grant.version > self._acknowledged:
            self._acknowledge(grant.version)
        if grant.step < self._acknowledged:
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
        self._versions[grant.version] = grant.weights
        if grant.step not in lease.finished:
            lease.hidden[grant.step] = grant.hidden
        return self._queue(lease, grant.step, _Queued(grant.version, grant.fresh, grant.ids))

    def _weights(self, weights: Weights, now: float) -> list[Effect]:
        self._versions[weights.version] = weights.weights
        if weights.version > self._acknowledged:
            self._acknowledge(weights.version)
        effects: list[Effect] = []
        for unit, ids in zip(weights.units, weights.ids, strict=True):
            lease = self._leases.get(unit.lease)
            if lease is not None and unit.step >= self._acknowledged:
                queued = _Queued(weights.version, bool(unit.flag), ids)
                effects += self._queue(lease, unit.step, queued)
        return effects

    def _queue(self, lease: _Lease, step: int, queued: _Queued) -> list[Effect]:
        """Queue a step, or send again what came of it."""
        if step in lease.finished:
            return [Send(lease.finished[step])]
        if self._in_hand_step(lease) != step:
            lease.queued[step] = queued
        return []

    def _acknowledge(self, version: int) -> None:
        """Forget what weights `version` show to be applied, and the weights no step needs now."""
        self._acknowledged = version
        for lease in self._leases.values():
            lease.forget_below(version)
        welcome = self.session.welcome
        delay = welcome.dimensions.delay if welcome else 0
        for old in [v for v in self._versions if v < version - delay]:
            del self._versions[old]

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
        self._versions: dict[int, Frame] = {}
        self._acknowledged = 0

    def _identity(self) -> tuple[str, int]:
        welcome = self.session.welcome
        return (welcome.run, welcome.term) if welcome else ("", -1)

    def _in_hand_step(self, lease: _Lease) -> int | None:
        if self._in_hand is None or self._computing is None or self._in_hand[1] != lease.number:
            return None
        return self._computing.step

    def _units(self) -> tuple[Unit, ...]:
        """How far it is with each unit it holds."""
        units = []
        for lease in self._leases.values():
            steps = dict.fromkeys(lease.finished, UnitState.SENT)
            steps |= dict.fromkeys((k for k in lease.queued if k in lease.hidden), UnitState.QUEUED)
            if (in_hand := self._in_hand_step(lease)) is not None:
                steps[in_hand] = UnitState.COMPUTING
            units += [Unit(lease.number, lease.shard, k, state) for k, state in steps.items()]
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
