"""Planted bugs in who may send, who computes, who is waited for: rules 3 and 11 to 16."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import pytest

from manychar.numerics.tree_reduction import Range
from manychar.protocol import worker
from manychar.protocol.admission import Admission
from manychar.protocol.client_session import ClientSession
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.effects import Effect
from manychar.protocol.events import Computed, Started
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.lifecycle import Lifecycle
from manychar.protocol.member import Member
from manychar.protocol.membership import Lease, Membership
from manychar.protocol.messages import Grant, Message, Peer, Ready, RunAndTerm, UnitResult, Welcome
from manychar.protocol.outbox import Outbox
from manychar.protocol.server import ParameterServer
from manychar.protocol.status_report import StatusReport
from manychar.protocol.worker import Worker
from tests.simulation.planted import mutant, plant_handler
from tests.simulation.world import World

# Terms (rules 11, 12).


@mutant("11", "server-crash", "another term", seed=27)
def the_server_takes_another_terms_messages(patch: pytest.MonkeyPatch) -> None:
    receive = ParameterServer._received_from_member

    def blind(self: ParameterServer, peer: Peer, message: Any, now: float) -> None:
        receive(self, peer, dataclasses.replace(message, **self.spec.run_and_term), now)

    patch.setattr(ParameterServer, "_received_from_member", blind)


@mutant("11", "server-crash", "another term")
def who_is_not_known_is_not_answered(patch: pytest.MonkeyPatch) -> None:
    receive = ParameterServer._received_from_member

    def deaf(self: ParameterServer, peer: Peer, message: Any, now: float) -> None:
        if message.run_and_term == self.spec.run_and_term:
            receive(self, peer, message, now)

    patch.setattr(ParameterServer, "_received_from_member", deaf)


@mutant("11", "copied", "another term", seed=3)
def the_server_takes_another_sessions_messages(patch: pytest.MonkeyPatch) -> None:
    receive = ParameterServer._received_from_member

    def blind(self: ParameterServer, peer: Peer, message: Any, now: float) -> None:
        receive(self, peer, dataclasses.replace(message, session=self.spec.session), now)

    patch.setattr(ParameterServer, "_received_from_member", blind)


@mutant("11", "copied", "another term", "abandoned", seed=6)
def a_worker_takes_another_sessions_messages(patch: pytest.MonkeyPatch) -> None:
    def blind(self: ClientSession, run_and_term: RunAndTerm) -> bool:
        mine = self.welcome
        return mine is not None and mine.term == run_and_term["term"]

    patch.setattr(ClientSession, "belongs", blind)


@mutant("11", "server-crash", "abandoned", seed=18)
def a_unit_of_another_term_is_computed_to_its_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Worker, "_is_over", lambda self, unit: unit.step < self._step)


@mutant("11", "server-crash", "abandoned", "undelivered", seed=18)
def a_unit_is_given_the_term_in_which_it_is_sent(patch: pytest.MonkeyPatch) -> None:
    computed = Worker._computed

    def renamed(self: Worker, event: Computed, now: float) -> list[Effect]:
        if self._in_hand is not None:
            self._in_hand.run_and_term = self.session.welcomed().run_and_term
        return computed(self, event, now)

    plant_handler(patch, Worker, "_computed", renamed)
    patch.setattr(Worker, "_is_over", lambda self, unit: unit.step < self._step)


@mutant("11", "server-crash+reordering", "another term", seed=6)
def a_worker_takes_another_terms_messages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClientSession, "concerns", lambda *_: True)


@mutant("11", "mixed", "term", seed=25)
def a_worker_goes_back_to_an_older_term(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClientSession, "is_stale", lambda *_: False)


@mutant("11", "server-crash", "another term", seed=33)
def a_worker_keeps_its_leases_in_a_new_term(patch: pytest.MonkeyPatch) -> None:
    welcome = Worker._welcome

    def faithful(self: Worker, message: Welcome, now: float) -> list[Effect]:
        leases, newest = self._leases, self._newest
        effects = welcome(self, message, now)
        self._leases, self._newest = leases, newest
        return effects

    plant_handler(patch, Worker, "_welcome", faithful)


@mutant("12", "server-crash", "term")
def a_restart_does_not_raise_the_term(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "next_term", lambda world: max(1, world.term))


@mutant("12", "server-crash", "term")
def the_term_is_not_on_disk_before_the_first_message(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: World) -> int:
        term = self.__dict__.setdefault("term_on_disk", 0) + 1
        self.after(2.0, functools.partial(self.__dict__.update, term_on_disk=term))
        return int(term)

    patch.setattr(World, "next_term", hasty)


# Leases, silence and asking again (rules 13, 14, 15).


@mutant("13", "loss", "stuck", seed=2)
def nothing_is_asked_for_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseGrants, "ask_again", lambda *_: None)


@mutant("13", "loss", "stuck", seed=2)
def every_holder_is_thought_busy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Member, "is_busy", lambda *_: True)


@mutant("13", "none", "asked again", seed=89)
def no_holder_is_thought_busy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Member, "is_busy", lambda *_: False)


@mutant("13", "none", "asked again", seed=1)
def a_worker_is_asked_again_for_what_it_has(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Member, "has_unit", lambda *_: False)


@mutant("14", "suspended", "stuck")
def the_limit_for_a_hang_does_not_double(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Membership, "limit", lambda self, _: self.silence)


@mutant("14", "suspended", "stuck", "undelivered")
def no_limit_doubles_and_only_the_holders_result_counts(patch: pytest.MonkeyPatch) -> None:
    the_limit_for_a_hang_does_not_double(patch)
    only_the_holders_result_counts(patch)


@mutant("14", "suspended", "stuck", "undelivered")
def no_limit_doubles_and_what_is_revoked_is_dropped(patch: pytest.MonkeyPatch) -> None:
    the_limit_for_a_hang_does_not_double(patch)
    a_revoked_worker_drops_what_it_began(patch)


@mutant("14", "hang", "undelivered", seed=8)
def a_revoked_worker_drops_what_it_began(patch: pytest.MonkeyPatch) -> None:
    computed = Worker._computed

    def dropping(self: Worker, event: Computed, now: float) -> list[Effect]:
        assert self._in_hand is not None
        held = self._in_hand.lease in self._leases
        effects = computed(self, event, now)
        return effects if held else []

    plant_handler(patch, Worker, "_computed", dropping)


@mutant("14", "hang", "counted", "assessment", seed=5)
def only_the_holders_result_counts(patch: pytest.MonkeyPatch) -> None:
    unit_result = ParameterServer._unit_result

    def jealous(self: ParameterServer, member: Member, result: UnitResult, now: float) -> None:
        if result.lease in self.membership.leases:
            unit_result(self, member, result, now)

    plant_handler(patch, ParameterServer, "_unit_result", jealous)


@mutant("15", "reordering", "older lease", seed=4)
def an_older_grant_replaces_a_newer(patch: pytest.MonkeyPatch) -> None:
    grant = Worker._grant

    def hasty(self: Worker, message: Grant, now: float) -> list[Effect]:
        for lease in _overlapping(self, message):
            if lease.number > message.lease:
                del self._leases[lease.number]
        return grant(self, message, now)

    plant_handler(patch, Worker, "_grant", hasty)


def _overlapping(machine: Worker, grant: Grant) -> list[Any]:
    """Return the worker's leases that have shards of a grant's lease."""
    return [
        lease
        for lease in machine._leases.values()
        if lease.shards[0] <= grant.lease_last and grant.lease_first <= lease.shards[1]
    ]


@mutant("3", "confused", "older lease", seed=1)
def a_grant_voids_no_older_lease_of_its_shards(patch: pytest.MonkeyPatch) -> None:
    grant = Worker._grant

    def mild(self: Worker, message: Grant, now: float) -> list[Effect]:
        older = {each.number: each for each in _overlapping(self, message)}
        effects = grant(self, message, now)
        self._leases |= {n: each for n, each in older.items() if n not in self._leases}
        return effects

    plant_handler(patch, Worker, "_grant", mild)


@mutant("3", "other-cut", "weights")
def every_holder_is_thought_to_have_the_hidden_states(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Membership, "can_continue", lambda *_: True)


@mutant("15", "mixed", "abandoned", seed=10)
def a_unit_of_a_step_that_is_applied_is_computed_to_its_end(patch: pytest.MonkeyPatch) -> None:
    def faithful(self: Worker, unit: Any) -> bool:
        return not self.session.belongs(unit.run_and_term)

    patch.setattr(Worker, "_is_over", faithful)


# Ranges (rule 16).


@mutant("16", "worker-crash", "unheld", seed=1)
def the_shards_of_a_lost_worker_wait_for_the_next_step(patch: pytest.MonkeyPatch) -> None:
    def patient(self: LeaseGrants, member: Member, now: float) -> None:
        self._revoke(self._membership.end_leases(member.peer))

    patch.setattr(LeaseGrants, "lost", patient)


@mutant("16", "worker-crash", "unheld", seed=16)
def shards_are_only_leased_when_they_are_lost_and_somebody_is_here(
    patch: pytest.MonkeyPatch,
) -> None:
    joined = LeaseGrants.joined

    def deaf(self: LeaseGrants, now: float) -> None:
        if self._step == self._spec.state.step:
            joined(self, now)
        else:
            self._membership.workers_changed()

    patch.setattr(LeaseGrants, "joined", deaf)


@mutant("16", "moves+worker-crash", "unheld", seed=63)
def a_duplicate_counts_as_held(patch: pytest.MonkeyPatch) -> None:
    lease_unheld = Membership.lease_unheld

    def trusting(self: Membership, missing: Iterable[int]) -> list[Lease]:
        held = {i for lease in self.leases.values() for i in lease.numbers if lease.duplicate}
        return lease_unheld(self, [shard for shard in missing if shard not in held])

    patch.setattr(Membership, "lease_unheld", trusting)


@mutant("16", "none", "taken", seed=1)
def ranges_are_cut_anew_within_a_step(patch: pytest.MonkeyPatch) -> None:
    joined = LeaseGrants.joined

    def hasty(self: LeaseGrants, now: float) -> None:
        joined(self, now)
        self._membership.workers_changed()
        revoked, _ = self._membership.cut_anew(now)
        self._revoke(revoked)
        for lease in self._membership.leases.values():
            self.grant(lease, now)

    patch.setattr(LeaseGrants, "joined", hasty)


@mutant("16", "worker-crash", "ranges", seed=1)
def what_was_leased_in_addition_stays(patch: pytest.MonkeyPatch) -> None:
    cut_anew = Membership.cut_anew

    def lazy(self: Membership, now: float) -> tuple[list[Lease], list[Member]]:
        several = len(self.holders()) < len(self.leases)
        return ([], []) if several else cut_anew(self, now)

    patch.setattr(Membership, "cut_anew", lazy)


@mutant("2", "confused", "banned", seed=13)
def wrong_states_are_counted_though_right_ones_come_between(patch: pytest.MonkeyPatch) -> None:
    accepted = Membership.accepted

    def strict(self: Membership, shards: Iterable[int], peer: Peer, *unit: int) -> None:
        renewals = self.members[peer].renewals
        accepted(self, shards, peer, *unit)
        self.members[peer].renewals = renewals

    patch.setattr(Membership, "accepted", strict)


# Numbers of leases, and who is here.


@mutant("15", "mixed", "lowest first", seed=21)
def the_highest_shard_is_computed_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(worker, "min", max, raising=False)


@mutant("15", "join", "lease")
def a_lease_is_granted_twice(patch: pytest.MonkeyPatch) -> None:
    send = Outbox.send

    def twice(self: Outbox, peer: Peer, message: Message) -> None:
        send(self, peer, message)
        if isinstance(message, Grant):
            for other in self._membership.workers():
                send(self, other.peer, message)

    patch.setattr(Outbox, "send", twice)


@mutant("15", "join", "lease")
def a_lease_number_is_used_twice(patch: pytest.MonkeyPatch) -> None:
    lease = Membership.lease

    def by_shard(self: Membership, shards: Range, peer: Peer) -> Lease:
        self._numbers = shards[0]
        return lease(self, shards, peer)

    patch.setattr(Membership, "lease", by_shard)


@mutant("lost", "worker-crash", "lost", seed=4)
def nobody_is_ever_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "check_silence", lambda *_: None)


@mutant("lost", "hang", "peer error", "exception", "stuck", seed=3)
def who_comes_back_stays_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "end_silence", lambda *_: None)


@mutant("numerics", "foreign", "accepted result", "banned", seed=18)
def other_arithmetic_is_let_in(patch: pytest.MonkeyPatch) -> None:
    right = Admission.ready

    def polite(self: Admission, member: Member, ready: Ready, now: float) -> None:
        right(self, member, dataclasses.replace(ready, fingerprint=self._spec.fingerprint), now)

    patch.setattr(Admission, "ready", polite)


# What is said, and the end.


@mutant("told", "suspended", "silence")
def the_server_waits_in_silence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StatusReport, "report_stall", lambda *_: None)


@mutant("end", "none", "result")
def the_end_does_not_wait_for_the_last_checkpoint(patch: pytest.MonkeyPatch) -> None:
    save = Lifecycle.save

    def hasty(self: Lifecycle, now: float) -> None:
        save(self, now)
        self.finish(0, "done")

    patch.setattr(Lifecycle, "save", hasty)


@mutant("end", "none", "end", "step", seed=3)
def no_step_waits_for_a_validation_loss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EarlyStopping, "waits", lambda *_: False)


@mutant("end", "none", "end", "step", "exception", seed=14)
def a_decision_takes_effect_at_once(patch: pytest.MonkeyPatch) -> None:
    ends_at = EarlyStopping.ends_at
    patch.setattr(EarlyStopping, "ends_at", lambda self, step: ends_at(self, step + self._every))


@mutant("end", "server-crash", "end", "step", "best")
def validation_losses_are_forgotten_by_a_restart(patch: pytest.MonkeyPatch) -> None:
    started = Lifecycle.started

    def forgetful(self: Lifecycle, event: Started, now: float) -> None:
        self._early_stopping.validation_losses.clear()
        started(self, event, now)

    patch.setattr(Lifecycle, "started", forgetful)


@mutant("end", "stop", "end", "step", "stuck", seed=2)
def what_was_saved_on_a_stop_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EarlyStopping, "_counts", lambda *_: True)
