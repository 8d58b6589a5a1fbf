"""Relay: a worker to the server above it, and a server to the workers below it.

Above it is a Worker, with its states, that computes nothing itself: what it is granted is the open
step of the server below, which leases the parts to its members. The way of the data:

    a grant, or weights alone ──▶ RelayStep ──▶ grants, or weights alone, to the members
    units of the members ──▶ RelayStep, its tree of sums ──▶ one unit to the server for each run

The server below begins with the welcome from above, in a session that follows from that of the
server and from this process: no message of an earlier process is taken for one of this. It ends
with the term or session above. All that a relay holds can be granted again: its death is that of a
worker.

It sends the smallest range that contains the run and whose cover it has. What it cannot tell, or
what is of shards that are not leased to it (any more), it passes up unchanged. Its heartbeat tells
how many workers are below: while there are none, it gets no shards. It lists its units as queued,
never as being computed: the server asks again for what it does not have, and it asks its members.
"""

import dataclasses
from typing import Any

from manychar.numerics.tree_reduction import Range
from manychar.protocol import events, messages
from manychar.protocol.client_session import CONNECTED, CONNECTING, ENDED, NOT_ENDED
from manychar.protocol.conflicting_results import named_by
from manychar.protocol.counters import Counter
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.effects import RUN_FAILED, Effect, Finish, Send
from manychar.protocol.events import rows
from manychar.protocol.field_types import TEXT_LENGTH
from manychar.protocol.held_units import HeldLease
from manychar.protocol.member import Member, PeerState
from manychar.protocol.membership import Membership
from manychar.protocol.messages import (
    RELAYS,
    Frame,
    Hello,
    Reset,
    Role,
    UnitResult,
    Welcome,
    unit_fields,
)
from manychar.protocol.packed_header import Expected
from manychar.protocol.range_cut import numbers_of
from manychar.protocol.relay_step import RelayStep, spec_of
from manychar.protocol.server import TICK, ParameterServer
from manychar.protocol.status_report import PAGES_EVERY
from manychar.protocol.worker import Worker

NO_RUN = Welcome(
    run_id="none",
    term=0,
    session=0,
    dimensions=Dimensions(
        vocabulary_size=1, hidden=1, seq_length=1, streams=1, shards=1, dtype="float32"
    ),
    numerics="portable",
    seed=0,
    silence=1.0,
    vocabulary=b"",
    fingerprint="none",
    libraries={},
)
"""What a relay serves before it is welcomed itself: it has no members then."""
REMEDY = "give one of them the server's ENDPOINT"
OWN_ENDPOINT = (
    "{}: a relay cannot work for itself: give it the server's ENDPOINT, or choose another --bind"
)

_OF_MEMBERS = (
    *(events.PeerLost, events.KeyRevoked, events.Malformed, events.Dropped),
    events.MailboxEmpty,
)


class RelayServer(ParameterServer):
    """The server below, for one session above: its members, their leases, and the open step."""

    aggregation_class = RelayStep
    aggregation: RelayStep

    def __init__(self, welcome: Welcome, relay: "Relay", *, now: float) -> None:
        super().__init__(spec_of(welcome, relay.session.hello.instance), now=now)
        self._relay, self._pages_at = relay, now
        self.handle(events.Started(), now)

    @property
    def workers(self) -> int:
        """The number of workers below, at any depth."""
        return sum(member.workers for member in self.membership.workers())

    def _connect(self, event: events.Received, hello: Hello, now: float) -> None:
        """Admit a worker or relay, once this relay is admitted itself; end where it is this one."""
        session = self._relay.session
        if hello.instance == session.hello.instance:
            self._relay.phase = ENDED
            self.outbox.add(Finish(RUN_FAILED, OWN_ENDPOINT.format(session.server)))
        elif reason := self._relay.reason_to_refuse(hello):
            self.admission.refuse(event.peer, hello.name, reason)
        elif self._relay.dimensions is not None:
            super()._connect(event, hello, now)

    def _is_overtaken(self, message: messages.FromMember, owner: messages.Owner | None) -> bool:
        """Whether to end: no, but where a member has seen a newer server, connect above again."""
        if super()._is_overtaken(message, owner):
            self._relay.connect_again()
        return False

    def _deadline_passed(self, event: events.DeadlinePassed, now: float) -> None:
        self._next_tick = now + TICK
        self.admission.check_silence(now)
        self.lease_grants.ask_again(now)
        if self.aggregation.missing():
            self.status_report.report_stall(now)
        if now >= self._pages_at:
            self._pages_at = now + PAGES_EVERY
            for page in self.status_report.pages(now):  # the run's figures are the server's
                self._relay.pass_up(dataclasses.replace(page, step=0, characters=0, checkpoint=0))

    def _unit_result(self, member: Member, result: UnitResult, now: float) -> None:
        """Take a unit; what is not of this relay's shards goes up unchanged."""
        step, shards = self.aggregation, result.shards
        is_open = result.step == step.state.step
        if is_open and not self._relay.leased().issuperset(numbers_of(shards)):
            self._pass_up(member, result)
        if result.step > step.state.step or (is_open and not step.has_inputs(shards)):
            self.outbox.count(Counter.UNITS_NOT_OPEN)
            return
        super()._unit_result(member, result, now)
        self._relay.send_complete()

    def _dispute(self, member: Member, result: UnitResult, *, finite: bool) -> None:
        self._pass_up(member, result)

    def _pass_up(self, member: Member, result: UnitResult) -> None:
        self.aggregation.note_passed_up(result, member.identities)
        self._relay.pass_up(result)

    def blame(self, dispute: messages.Dispute) -> None:
        """Name the workers that were wrong; have the relays among the members do so.

        Without any, this relay names itself: the parts were right, or it does not know.
        """
        known, relays = self.spec.run_and_term, self.membership.relays()
        where = {"step": dispute.step, "first": dispute.first, "last": dispute.last}
        for name, key in self.aggregation.senders_of_wrong(dispute) or {("", "")}:
            asked = [relay.peer for relay in relays if relay.identities == (name, key)]
            for peer in asked:
                self.outbox.send(peer, dataclasses.replace(dispute, **known))
            if not asked:
                self._relay.pass_up(messages.Blame(**known, **where, name=name, key=key))

    def _message_rows(self) -> events.Table:
        return super()._message_rows() | rows((PeerState.WORKING,), (messages.Blame,), self._blamed)

    def _blamed(self, member: Member, blame: messages.Blame, now: float) -> None:
        name, key = named_by(member, blame)
        self._relay.pass_up(dataclasses.replace(blame, name=name, key=key))

    @property
    def seconds(self) -> float:
        """How long a shard takes at one worker, on average: of all workers, not of the holders."""
        members = self.membership.workers()
        known = [(each.workers, s) for each in members if (s := each.speed.seconds_a_shard)]
        rate = sum(workers / seconds for workers, seconds in known)
        return sum(workers for workers, _ in known) / rate if known else 0.0


# Many methods: those of a worker that a relay does otherwise, and what its server needs of it.
class Relay(Worker):
    """The machine of one relay. Events of peers are for the server below."""

    def __init__(self, hello: Hello, *, server: str, connect_timeout: float, now: float) -> None:
        super().__init__(hello, server=server, connect_timeout=connect_timeout, now=now)
        self._now = now
        self._told_workers = 0
        self._note_relays([])
        self.below = RelayServer(NO_RUN, self, now=now)

    @property
    def membership(self) -> Membership:
        return self.below.membership

    @property
    def expected_results(self) -> Expected:
        return self.below.expected_results

    def deadline(self) -> float | None:
        due, below = super().deadline(), self.below.deadline()
        return due if due is None or below is None else min(due, below)

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        """Handle an event. PeerError: its sender may not send this message; hand in Malformed."""
        self._now = now
        if self.phase is ENDED:
            return []
        of_peer = isinstance(event, events.Received) and event.peer != b""
        if of_peer or isinstance(event, _OF_MEMBERS):
            return self.below.handle(event, now)
        down: list[Effect] = []
        if isinstance(event, events.Suspended | events.DeadlinePassed):
            down = self.below.handle(event, now)  # before the heartbeat, which counts the workers
            if self.below.workers != self._told_workers:
                self.session.next_heartbeat = now
        up = super().handle(event, now)
        for finish in (each for each in up if isinstance(each, Finish)):
            self._end(finish, event)
        return down + self.below.outbox.collect() + up

    def _end(self, finish: Finish, event: events.Event) -> None:
        """Tell the members to end: their server, which this relay is to them, ends."""
        is_run = isinstance(event, events.Received) and isinstance(event.message, messages.Done)
        text = finish.reason if is_run else f"the relay {self.session.hello.name}: {finish.reason}"
        where, reason = self.below.spec.run_and_term, messages.one_line(text)
        self.below.outbox.send_to_all(messages.Done(**where, code=finish.code, reason=reason))

    # Trees.

    def _note_relays(self, below: list[str]) -> None:
        """Name this relay and those below it in the next Hello: the newest, as many as fit."""
        hello = self.session.hello
        known = hello.machine.get(RELAYS, "").split()[1:]
        text = " ".join(dict.fromkeys([hello.instance, *below, *known]))[:TEXT_LENGTH]
        self.session.hello = dataclasses.replace(hello, machine={**hello.machine, RELAYS: text})

    def reason_to_refuse(self, hello: Hello) -> str:
        """Return why a client may not connect to this relay, or nothing."""
        relays = hello.machine.get(RELAYS, "").split()
        if self.session.hello.instance in relays:
            return f"a cycle of relays: {self.session.hello.name} is above and below it; {REMEDY}"
        if hello.role == Role.OBSERVER:
            return f"this is a relay: connect to {self.session.server}"
        self._note_relays(relays)
        return ""

    def _welcome(self, welcome: Welcome, now: float) -> list[Effect]:
        if self.session.hello.instance in welcome.relays.split():
            self.phase = ENDED
            above = self.session.server
            reason = f"a cycle of relays: {above} is above and below this one; {REMEDY}"
            return [Finish(RUN_FAILED, reason)]
        following = super()._welcome(welcome, now)
        if self._fingerprint is None and following:  # another run or term
            new = RelayServer(welcome, self, now=now)
            self.below.outbox.send_to_all(Reset(**new.spec.run_and_term))
            following = self.below.outbox.collect() + following
            self.below = new
        return following

    # Down.

    def _queue(self, lease: HeldLease, shards: Range, ids: list[Frame]) -> list[Effect]:
        """Queue a unit, and lease its parts below."""
        effects = super()._queue(lease, shards, ids)
        if shards in lease.queued:
            below = self.below
            is_new = below.aggregation.state.step != self._step
            if is_new:
                below.membership.set_scope(shards)
                below.aggregation.open(self._step, self._newest, is_fresh=self._is_fresh)
                below.status_report.applied(self._now)
            hidden = [lease.hidden[shard] for shard in numbers_of(shards)]
            below.aggregation.add(shards, hidden, ids)
            self._rescope()
            grants = below.lease_grants
            (grants.broadcast if is_new else grants.lease_unheld)(self._now)
            self.send_complete()
        return effects

    def leased(self) -> set[int]:
        return {shard for each in self._leases.values() for shard in numbers_of(each.shards)}

    def _rescope(self) -> None:
        """Want what is queued, and revoke what is of ended leases."""
        runs = [run for lease in self._leases.values() for run in lease.queued]
        self.below.aggregation.wanted = {shard for run in runs for shard in numbers_of(run)}
        self.below.lease_grants.keep_only(self.leased())

    def _revoke(self, revoke: messages.Revoke, now: float) -> list[Effect]:
        effects = super()._revoke(revoke, now)
        self._rescope()
        return effects

    def _forget_everything(self) -> None:
        super()._forget_everything()
        self.below.aggregation.open(-1, self.below.aggregation.weights, is_fresh=False)
        self._rescope()

    def _dispute(self, dispute: messages.Dispute, now: float) -> list[Effect]:
        self.below.blame(dispute)
        return []

    def _ban(self, ban: messages.Ban, now: float) -> list[Effect]:
        self.below.admission.ban_from_above(ban, now)
        return []

    def connect_again(self) -> None:
        self._forget_everything()
        self.phase = CONNECTING
        self.session.connect(self._now)

    # Up.

    def send_complete(self) -> None:
        step = self.below.aggregation
        for lease in self._leases.values() if self.phase is CONNECTED else ():
            for run in list(lease.queued):
                if (unit := step.unit_of(run)) is None:
                    continue
                del lease.queued[run]
                known = self.session.welcomed().run_and_term
                fields = unit_fields(known, lease=lease.number, shards=unit, step=self._step)
                result = UnitResult(
                    **fields,
                    weights_digest=step.weights_digest,
                    seconds=self.below.seconds,
                    payload=step.payload(unit),
                )
                lease.finish(run, result, step.next_hidden(run))
                self.below.outbox.add(Send(result))

    def pass_up(self, message: UnitResult | messages.Status | messages.Blame) -> None:
        """Send what comes from below, in the server's session; a unit under no lease."""
        if self.phase is CONNECTED:
            changes: dict[str, Any] = {**self.session.welcomed().run_and_term}
            changes |= {"lease": 0} if isinstance(message, UnitResult) else {}
            self.below.outbox.add(Send(dataclasses.replace(message, **changes)))

    def _progress(self, run_and_term: messages.RunAndTerm) -> messages.Heartbeat:
        self._told_workers = self.below.workers
        levels = 1 + max((each.levels for each in self.below.membership.workers()), default=0)
        progress = super()._progress(run_and_term)
        return dataclasses.replace(progress, workers=self._told_workers, levels=levels)


Relay.table = {
    **Worker.table,
    **rows(NOT_ENDED, (Welcome,), Relay._welcome, *NOT_ENDED, ENDED),
    **rows((CONNECTING,), (messages.Dispute, messages.Ban), Relay._ignore),
    **rows((CONNECTED,), (messages.Dispute,), Relay._dispute),
    **rows((CONNECTED,), (messages.Ban,), Relay._ban),
    **rows((CONNECTED,), (messages.Revoke,), Relay._revoke),
}
