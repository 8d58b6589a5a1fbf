"""ParameterServer: grants shards, takes gradients, averages, clips, applies Adagrad, broadcasts.

The run:    TRAINING ──the last step is applied, or it gets no better──▶ SAVING ──saved──▶ FINISHED
            TRAINING ──stop──▶ STOPPING ──the step is applied, or no time left──▶ SAVING
            any ──a failure, a way back, a newer server──▶ FINISHED

Each peer:  unknown ──Hello──▶ GREETED ──Ready, the run's fingerprint──▶ WORKING ⇄ SILENT
            unknown ──Hello of an observer──▶ OBSERVING

`_TABLE` at the end lists every message that a peer may send in each of its states; another one is
a PeerError. Whatever comes from a peer that is not known, or from another term, is answered with
StartAfresh, so that a peer's memory of a former server can never be mistaken for this one's.

Its parts: `steps` (which gradients count), `membership` (who is here), `leasing` (who computes
what), `reception` (who comes and goes), `disputes` (who was wrong), `judging` (whether it gets
better), `waiting`, `reporting` and `attendance` (how it stands), `outbox` (what comes of it).
"""

import enum
import math
from collections.abc import Callable
from typing import Any

from manychar.numerics.train import State
from manychar.protocol.attendance import Attendances
from manychar.protocol.disputes import Disputes
from manychar.protocol.effects import (
    Append,
    Effect,
    Finish,
    Judge,
    KeepBest,
    PeerError,
    Record,
    Result,
    Save,
)
from manychar.protocol.judging import Judging
from manychar.protocol.leasing import Leasing
from manychar.protocol.manners import CUT_OFF_FOR, Manners
from manychar.protocol.membership import Member, Membership, PeerState
from manychar.protocol.messages import (
    Done,
    FromMember,
    Goodbye,
    Gradient,
    Heartbeat,
    Hello,
    KeyRole,
    Level,
    Message,
    Owner,
    Peer,
    Ready,
    Refused,
    StartAfresh,
    Stop,
    one_line,
)
from manychar.protocol.outbox import Outbox
from manychar.protocol.reception import Reception
from manychar.protocol.reporting import Reporting
from manychar.protocol.run import Run
from manychar.protocol.steps import Steps, Verdict, as_frame
from manychar.protocol.waiting import Waiting

TICK = 0.1
RECORD_EVERY_STEPS = 100
REMARK_EVERY = 1.0
STOPPED = 75
STOP_WITHIN = 5.0


class Phase(enum.Enum):
    """Where the run stands."""

    TRAINING = "training"
    STOPPING = "stopping"
    SAVING = "saving"
    FINISHED = "finished"


class ParameterServer:
    """The machine of the server. Times are seconds of any steady clock."""

    def __init__(self, run: Run, *, now: float) -> None:
        self.run = run
        self.dimensions = run.dimensions
        self.phase = Phase.TRAINING
        limit = run.operation.steps or math.inf
        self.steps = Steps(run.definition, run.streams, run.state, limit=limit)
        self.membership = Membership(run.definition.shards, silence=run.operation.silence)
        self.outbox = Outbox(run.run, run.term, self.membership)
        self.leasing = Leasing(self.steps, self.membership, self.outbox)
        self.reception = Reception(run, self.membership, self.leasing, self.outbox)
        self.disputes = Disputes(self.steps, self.reception, self.outbox)
        self.judging = Judging(
            run.verdicts,
            on=run.definition.validation > 0,
            every=run.operation.checkpoint_every,
            patience=run.operation.stop_when_no_better,
        )
        self.waiting = Waiting(self.steps, self.leasing, self.judging, self.outbox, now=now)
        self.attendances = Attendances(
            self.steps, self.membership, self.waiting, self.outbox, now=now
        )
        self.reporting = Reporting(
            run, self.steps, self.membership, self.judging, self.outbox, now=now
        )
        self.counts = self.outbox.counts
        self._next_tick = now
        self._stop_by = math.inf
        self._saved_step = -1
        self.asked: Finish | None = None
        self._ending = Finish(0, "")
        self._manners = Manners()
        self._next_remark = now

    @property
    def state(self) -> State:
        """The state after the steps that were applied."""
        return self.steps.state

    # Events.

    def begin(self, now: float) -> list[Effect]:
        """Start: a run that is through already ends at once."""
        for step in self.run.unjudged:
            self.judging.expect(step)
            self._have_judged(step)
        if self.steps.closed:
            self._save_and_finish(now)
        elif self.judging.is_over(self.state.step):
            self._no_better(now)
        return self.outbox.collect()

    def receive(
        self, peer: Peer, message: Message, now: float, owner: Owner | None = None
    ) -> list[Effect]:
        """Take a message from a peer; PeerError if the peer may not send it.

        `owner` is whose key the transport let in, None where there are no keys.
        """
        if self.phase is Phase.FINISHED:
            return []
        if isinstance(message, Hello):
            self._greet(peer, message, owner, now)
        elif not isinstance(message, FromMember):
            raise PeerError(f"{type(message).__name__} to a server")
        elif self._is_overtaken(message, owner):
            self._end(3, f"a newer server (term {message.term}) has taken this run over")
        else:
            self._receive_from_member(peer, message, now)
        return self.outbox.collect()

    def _is_overtaken(self, message: FromMember, owner: Owner | None) -> bool:
        """Whether a peer has seen a newer server of this run; an observer's word is not enough."""
        looks_only = owner is not None and owner.role is KeyRole.OBSERVER
        newer = message.run == self.run.run and message.term > self.run.term
        return newer and not looks_only

    def _greet(self, peer: Peer, hello: Hello, owner: Owner | None, now: float) -> None:
        known = peer in self.membership.members
        member = self.reception.greet(peer, hello, owner, now)
        if member is not None and member.state is PeerState.OBSERVING:
            self.outbox.send(peer, self.reporting.report(now))
            if known:
                return  # who asks again and again does not fill this server's queue
            for roster in self.attendances.rosters(now):
                self.outbox.send(peer, roster)
            self.outbox.send(peer, self.reporting.weights())

    def _receive_from_member(self, peer: Peer, message: FromMember, now: float) -> None:
        member = self.membership.members.get(peer)
        if member is None or (message.run, message.term) != (self.run.run, self.run.term):
            if not isinstance(message, Goodbye):  # who leaves may be gone before it is read
                self.outbox.count("from another life")
            self.outbox.send(peer, StartAfresh(run=self.run.run, term=self.run.term))
            return
        member.heard_at = now
        if member.state is PeerState.SILENT:
            self.reception.comes_back(member, now)
        handler = _TABLE.get((member.state, type(message)))
        if handler is None:
            raise PeerError(f"{type(message).__name__} from a peer that is {member.state.value}")
        handler(self, member, message, now)

    def listens_to(self, peer: Peer, now: float, owner: Owner | None = None) -> bool:
        """Whether a message of this sender's is to be read; one that is not is counted."""
        cut_off = self._manners.is_cut_off(_sender(peer, owner), now)
        if cut_off:
            self.outbox.count("not listened to")
        return not cut_off

    def malformed(
        self, peer: Peer, reason: str, now: float, owner: Owner | None = None
    ) -> list[Effect]:
        """Count a message that the codec or the table refused, against its sender."""
        member = self.membership.members.get(peer)
        name = member.name if member else owner.name if owner else "an unknown peer"
        self.outbox.count_against(name, "malformed")
        if member is not None:
            member.tally.dropped += 1
        if now >= self._next_remark:
            self._next_remark = now + REMARK_EVERY
            self.outbox.warn(f"{name}: dropped: {reason} ({self.counts['malformed']:,} in all)")
        if self._manners.fault(_sender(peer, owner), now):
            self.outbox.count("cut off")
            self.outbox.warn(f"{name} is not listened to for {CUT_OFF_FOR:.0f} s")
            if member is not None:
                self.reception.leaves(member, "it sends what cannot be read", now)
        return self.outbox.collect()

    def dropped(self, what: str, reason: str = "") -> list[Effect]:
        """Count what the shell had to let go; say the reason to everyone, if there is one."""
        self.outbox.count(what)
        return self.remark(reason) if reason else []

    def remark(self, text: str) -> list[Effect]:
        """Say a line of the shell's to everyone."""
        self.outbox.warn(text)
        return self.outbox.collect()

    def waits_for_disk(self, now: float) -> list[Effect]:
        """Say that nothing goes on before there is room for the next checkpoint."""
        step = self.state.step
        self.outbox.warn(f"step {step} waits for the disk: earlier checkpoints are being written")
        before, self.waiting.for_disk = self.waiting.for_disk, True
        self.attendances.tell(now)
        self.waiting.for_disk = before
        return self.outbox.collect()

    def unreachable(self, peer: Peer, now: float) -> list[Effect]:
        """Take note that the transport has no connection to this peer any more."""
        if (member := self.membership.members.get(peer)) is not None:
            self.reception.leaves(member, "its connection is gone", now)
        return self.outbox.collect()

    def revoked(self, peer: Peer, now: float) -> list[Effect]:
        """Drop a message that came with a key that is not good any more, and its sender."""
        self.outbox.count("by a revoked key")
        if (member := self.membership.members.get(peer)) is not None:
            self.reception.revoked(member, now)
        return self.outbox.collect()

    def saved(self, step: int, now: float) -> list[Effect]:
        """Take note that the checkpoint of `step` is on disk."""
        self.reporting.saved(step, now)
        self._have_judged(step)
        self._saved_step = max(self._saved_step, step)
        self.waiting.for_disk &= step != self.state.step
        self._end_if_all_is_done()
        return self.outbox.collect()

    def _have_judged(self, step: int) -> None:
        if self.judging.is_to_be_asked(step):
            self.outbox.add(Judge(step))

    def _end_if_all_is_done(self) -> None:
        saved = self._saved_step == self.state.step
        judged = self.asked is not None or self._ending.code != 0 or not self.judging.awaited
        if self.phase is Phase.SAVING and saved and judged and not self.disputes.open:
            words = (self._ending.reason, self.judging.summary if not self._ending.code else "")
            self._end(self._ending.code, "; ".join(filter(None, words)))

    def judged(self, step: int, nats: float, now: float) -> list[Effect]:
        """Take the loss of a checkpoint on the held-out text, in nats a character."""
        if self.phase is Phase.FINISHED:
            return []
        if self.judging.take(step, nats):
            self.outbox.add(KeepBest(step))
        self.reporting.show(now)
        self._go_on_after_verdict(now)
        return self.outbox.collect()

    def not_judged(self, step: int, reason: str, now: float) -> list[Effect]:
        """Take note that a checkpoint cannot be judged: it is not there any more."""
        if self.judging.depends_on(step):
            return self.judge_failed(f"the checkpoint of step {step}: {reason}", now)
        self.judging.pass_over(step)
        self.outbox.count("checkpoints not judged")
        self.outbox.warn(f"the checkpoint of step {step} is not judged: {reason}")
        self._go_on_after_verdict(now)
        return self.outbox.collect()

    def judge_failed(self, reason: str, now: float) -> list[Effect]:
        """Take note that nothing is judged any more; a run that depends on it ends."""
        self.outbox.notice(f"the held-out text is not judged any more: {reason}", Level.ERROR)
        decided = self.judging.decides
        self.judging.give_up()
        if decided and self.phase is Phase.TRAINING:
            self._ending = Finish(3, f"where this run ends cannot be told: {reason}")
            self._save_and_finish(now)
        self._go_on_after_verdict(now)
        return self.outbox.collect()

    def _go_on_after_verdict(self, now: float) -> None:
        if self.phase is Phase.TRAINING and self.judging.is_over(self.state.step):
            self._no_better(now)
        self._apply_what_is_complete(now)
        self._end_if_all_is_done()

    def _no_better(self, now: float) -> None:
        """End here: the decision on the checkpoint before this one was to stop."""
        patience = self.run.operation.stop_when_no_better
        self._ending = Finish(0, f"no better for {patience} checkpoint{'s'[: patience - 1]}")
        self._save_and_finish(now)

    def save_failed(self, step: int, reason: str, now: float) -> list[Effect]:
        """Take note that it is not: end the run, or go on without it."""
        awaited = step in self.judging.awaited
        self.judging.pass_over(step)
        what = f"the checkpoint of step {step} could not be written: {reason}"
        last = self.phase is Phase.SAVING and step == self.state.step
        if self.run.operation.go_on_without_disk and not last:
            self.outbox.count("checkpoints not written")
            self.outbox.warn(f"{what}; going on")
            if awaited and self.judging.depends_on(step):
                return self.judge_failed(what, now)
            self._go_on_after_verdict(now)
        else:
            self._end(3, f"{what}; the last good checkpoint is kept")
        return self.outbox.collect()

    def stop(self, code: int, reason: str, *, now: float, by: float) -> list[Effect]:
        """End the step, write a checkpoint and finish; at time `by` without the step's end."""
        self._begin_to_stop(code, reason, now=now, by=by)
        return self.outbox.collect()

    def _begin_to_stop(self, code: int, reason: str, *, now: float, by: float) -> None:
        self.asked = Finish(code, reason)
        if self.phase is Phase.SAVING:
            self._end_if_all_is_done()
        elif self.phase is Phase.TRAINING:
            self.phase = Phase.STOPPING
            self._ending = Finish(code, reason)
            self._stop_by = by
            if not self.membership.workers() or self.judging.waits(self.state.step):
                self._save_and_finish(now)

    def _asked_to_stop(self, member: Member, message: Stop, now: float) -> None:
        if member.owner is not None and member.owner.role is not KeyRole.OPERATOR:
            reason = f"the key of {member.owner.name} is not an operator's: it cannot stop a run"
            self.outbox.send(member.peer, Refused(reason=reason))
            return
        self._begin_to_stop(STOPPED, f"stopped by {member.name}", now=now, by=now + STOP_WITHIN)

    def tick(self, now: float) -> list[Effect]:
        """Notice who is silent, ask again for what is late, report, and complain of waiting."""
        if self.phase is Phase.FINISHED:
            return []
        self._next_tick = now + TICK
        self.reception.judge_silence(now)
        self.leasing.ask_again(now)
        self.waiting.tick(now)
        in_vain = now >= self._stop_by or not self.membership.workers()
        if self.phase is Phase.STOPPING and in_vain:
            self._save_and_finish(now)
        self.reporting.tick(now)
        self.attendances.tick(now)
        return self.outbox.collect()

    def catch_up(self) -> None:
        """Do what nobody waits for; to be called when what had come has been carried out."""
        self.steps.digest_accepted()

    def deadline(self) -> float | None:
        """When the next tick is due."""
        return None if self.phase is Phase.FINISHED else self._next_tick

    # Gradients.

    def _gradient(self, member: Member, gradient: Gradient, now: float) -> None:
        if gradient.shard >= self.dimensions.shards:
            raise PeerError(f"a gradient of shard {gradient.shard}")
        what = f"step {gradient.step}, shard {gradient.shard}"
        match verdict := self.steps.judge(gradient):
            case Verdict.WANTED:
                self._accept(member, gradient, now)
                return
            case Verdict.NOT_OPEN if self.phase is not Phase.SAVING:
                raise PeerError(f"a gradient of {what}, which is not open yet")
            case Verdict.NOT_FINITE:
                self._end(3, f"{member.name} sent a loss or gradient that is not finite: {what}")
            case Verdict.REPEAT_DIFFERS:
                self.disputes.begin(member, gradient)
            case Verdict.FROM_ANOTHER_STATE:
                self._distrust(member, gradient, now)
        member.tally.dropped += 1
        self.outbox.count(verdict.value)

    def _accept(self, member: Member, gradient: Gradient, now: float) -> None:
        self.membership.progressed(gradient.shard)
        self.steps.accept(gradient, member.names)
        self.attendances.delivers(member, now)
        self.leasing.counted(gradient.shard, member.peer, now)
        self._apply_what_is_complete(now)

    def _apply_what_is_complete(self, now: float) -> None:
        """Apply every step whose gradients are all there, up to one that waits for a verdict."""
        while (
            self.steps.complete
            and self.phase in (Phase.TRAINING, Phase.STOPPING)
            and not self.judging.waits(self.state.step)
        ):
            self.steps.apply()
            self.waiting.applied(now)
            self._after_step(now)

    def _distrust(self, member: Member, gradient: Gradient, now: float) -> None:
        """Drop what was computed from another state, and begin that lease anew."""
        self.outbox.warn(
            f"{member.name} computed step {gradient.step}, shard {gradient.shard}"
            " from another state: dropped"
        )
        lease = self.membership.leases.get(gradient.shard)
        awaited = gradient.step == self.steps.next(gradient.shard)
        if awaited and lease is not None and lease.peer == member.peer:
            self.leasing.renew(gradient.shard, now)

    def computed(self, shard: int, step: int, result: Result, now: float) -> list[Effect]:
        """Take this server's own result for a unit on which two others differ."""
        if self.phase is Phase.FINISHED:
            return []
        if (back := self.disputes.settle(shard, step, result, now)) is not None:
            self.phase = Phase.FINISHED
            self.outbox.add(back)
        self._end_if_all_is_done()
        return self.outbox.collect()

    # Steps.

    def _after_step(self, now: float) -> None:
        """Do what the new weights call for."""
        step, operation = self.state.step, self.run.operation
        last = self.steps.closed
        over = self.judging.is_over(step)
        ends = last or over or self.phase is Phase.STOPPING
        if not ends:
            self.attendances.broadcasts(now)
            self.leasing.broadcast(now)  # before all else: workers are waiting for it
        self.outbox.add(Append(step, self.steps.loss, as_frame(self.state.parameters.flat)))
        if _is_due(step, RECORD_EVERY_STEPS) or ends:
            self.outbox.add(Record(self.reporting.report(now)))
        if over and self.phase is Phase.TRAINING:
            self._no_better(now)
            return
        if ends:
            self._save_and_finish(now)
            return
        if _is_due(step, operation.checkpoint_every):
            self.judging.expect(step)
            self.outbox.add(Save(self.state))
        if _is_due(step, operation.sample_every):
            self.reporting.show(now)
            self.outbox.show(self.reporting.weights())

    def _save_and_finish(self, now: float) -> None:
        self.phase = Phase.SAVING
        self.steps.close()
        self.waiting.for_disk = True
        self.reporting.show(now)
        self.outbox.show(self.reporting.weights())
        if self._ending.code == 0 and self.asked is None:
            self.judging.expect(self.state.step)
        self.outbox.add(Save(self.state))

    def _end(self, code: int, reason: str) -> None:
        self.phase = Phase.FINISHED
        done = Done(run=self.run.run, term=self.run.term, code=code, reason=one_line(reason))
        for peer in self.membership.members:
            self.outbox.send(peer, done)
        self.outbox.add(Finish(code, reason))


def _sender(peer: Peer, owner: Owner | None) -> bytes:
    """Return who is held to account: a key's owner, or the connection."""
    return peer if owner is None else b"key " + owner.name.encode()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


_Handler = Callable[[ParameterServer, Member, Any, float], None]


def _at_reception(handler: Callable[[Reception, Member, Any, float], None]) -> _Handler:
    return lambda server, member, message, now: handler(server.reception, member, message, now)


_READY = _at_reception(Reception.ready)
_HEARTBEAT = _at_reception(Reception.heartbeat)
_GOODBYE = _at_reception(Reception.goodbye)
_NOT_READY = _at_reception(Reception.not_ready)

_TABLE: dict[tuple[PeerState, type[Any]], _Handler] = {
    (PeerState.GREETED, Ready): _READY,
    (PeerState.GREETED, Gradient): _NOT_READY,
    (PeerState.GREETED, Heartbeat): _HEARTBEAT,
    (PeerState.GREETED, Goodbye): _GOODBYE,
    (PeerState.WORKING, Ready): _READY,
    (PeerState.WORKING, Gradient): ParameterServer._gradient,
    (PeerState.WORKING, Heartbeat): _HEARTBEAT,
    (PeerState.WORKING, Goodbye): _GOODBYE,
    (PeerState.OBSERVING, Heartbeat): _HEARTBEAT,
    (PeerState.OBSERVING, Goodbye): _GOODBYE,
    (PeerState.OBSERVING, Stop): ParameterServer._asked_to_stop,
}
