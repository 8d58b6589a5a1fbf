"""Planted bugs in what is counted, granted, kept and summed: rules 1 to 10, and 19."""

import dataclasses
from typing import Any

import pytest

from manychar.numerics import training_step as trainer
from manychar.numerics.training_step import TrainingState
from manychar.numerics.tree_reduction import TreeSum
from manychar.protocol import admission, aggregation, conflicting_results, worker
from manychar.protocol.aggregation import Aggregation, Assessment, as_frame
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.effects import Effect, RememberBans
from manychar.protocol.events import Computed
from manychar.protocol.lifecycle import Lifecycle
from manychar.protocol.messages import Gradient, Identities, digest
from manychar.protocol.worker import Worker
from tests.simulation.disk import Disk, copy_of
from tests.simulation.planted import Plant, mutant, plant_handler
from tests.simulation.world import World

# What is counted (rules 1, 2, 4, 6).


@mutant("1", "loss", "stuck")
def a_grant_again_elicits_nothing(patch: pytest.MonkeyPatch) -> None:
    queue = Worker._queue

    def deaf(self: Worker, lease: Any, ids: Any, *, fresh: bool) -> list[Effect]:
        return [] if lease.finished is not None else queue(self, lease, ids, fresh=fresh)

    patch.setattr(Worker, "_queue", deaf)


@mutant("1", "loss", "computed twice")
def a_worker_forgets_what_it_has_sent(patch: pytest.MonkeyPatch) -> None:
    computed = Worker._computed

    def forgetful(self: Worker, event: Computed, now: float) -> list[Effect]:
        effects = computed(self, event, now)
        for lease in self._leases.values():
            lease.finished = None
        return effects

    plant_handler(patch, Worker, "_computed", forgetful)


@mutant("1", "mixed", "unit")
def a_worker_keeps_a_hidden_state_for_later_steps(patch: pytest.MonkeyPatch) -> None:
    advance = worker._Lease.advance

    def keeping(self: Any, *, by: int) -> None:
        before = self.hidden
        advance(self, by=by)
        self.hidden = self.hidden or before

    patch.setattr(worker._Lease, "advance", keeping)


@mutant("2", "confused", "counted", "assessment")
def the_hidden_state_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Aggregation, "_is_from_here", lambda *_: True)


def _assessed_as(assessment: Assessment, instead: Assessment) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        assess = Aggregation.assess

        def assessed(self: Aggregation, gradient: Gradient) -> Assessment:
            said = assess(self, gradient)
            return instead if said is assessment else said

        patch.setattr(Aggregation, "assess", assessed)

    return plant


@mutant("4", "duplication", "counted", "assessment", "exception")
def a_repeat_is_counted_twice(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Assessment.REPEAT, Assessment.WANTED)(patch)


@mutant("6", "reordering", "counted", "assessment", "exception")
def a_stale_gradient_counts(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Assessment.REPEAT_TOO_OLD, Assessment.WANTED)(patch)


@mutant("3", "none", "grant", "asked again")
def steps_after_the_last_are_granted(patch: pytest.MonkeyPatch) -> None:
    def endless(self: Aggregation, shard: int) -> bool:
        return shard not in self._senders[self.state.step]

    patch.setattr(Aggregation, "is_missing", endless)


# What is granted and kept (rules 3, 5, 6, 7, 8).


@mutant("3", "join", "grant")
def a_shard_is_granted_whose_gradient_is_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Aggregation, "is_missing", lambda self, _: not self.closed)


@mutant("3", "join", "grant")
def a_takeover_forgets_the_hidden_state(patch: pytest.MonkeyPatch) -> None:
    hidden = Aggregation.hidden
    patch.setattr(Aggregation, "hidden", lambda self, shard: bytes(len(hidden(self, shard))))


@mutant("5", "none", "state")
def a_checkpoint_has_the_hidden_states_of_the_step_before(patch: pytest.MonkeyPatch) -> None:
    apply = Aggregation.apply

    def older(self: Aggregation) -> None:
        apply(self)
        _, hidden = self._inputs[self.state.step - 1]
        self.state = dataclasses.replace(self.state, hidden=hidden)

    patch.setattr(Aggregation, "apply", older)


@mutant("6", "none", "weights", "grant")
def weights_are_one_version_off(patch: pytest.MonkeyPatch) -> None:
    def earlier(self: Aggregation) -> memoryview:
        return as_frame(self._inputs[max(self.state.step - 1, min(self._inputs))][0])

    patch.setattr(Aggregation, "weights", property(earlier))


@mutant("7", "none", "state", "grant")
def the_server_zeroes_at_a_wrap(patch: pytest.MonkeyPatch) -> None:
    accept = Aggregation.accept

    def zeroing(self: Aggregation, gradient: Gradient, sender: Identities) -> None:
        accept(self, gradient, sender)
        after = gradient.step + 1
        if self.corpus.batch_at(gradient.shard, after).fresh:
            self._next_hidden[gradient.shard] = 0

    patch.setattr(Aggregation, "accept", zeroing)


@mutant("7", "none", "sent gradient")
def nobody_zeroes_at_a_wrap(patch: pytest.MonkeyPatch) -> None:
    queue = Worker._queue

    def stale(self: Worker, lease: Any, ids: Any, *, fresh: bool) -> list[Effect]:
        return queue(self, lease, ids, fresh=False)

    patch.setattr(Worker, "_queue", stale)


@mutant("8", "mixed", "weights", "unit", "checkpoint")
def a_version_is_overwritten_before_it_is_sent(patch: pytest.MonkeyPatch) -> None:
    apply = trainer.apply

    def in_place(state: TrainingState, definition: Any, **sums: Any) -> TrainingState:
        after = apply(state, definition, **sums)
        state.parameters.flat[...] = after.parameters.flat
        return dataclasses.replace(after, parameters=state.parameters)

    patch.setattr(aggregation, "apply", in_place)
    patch.setattr(World, "restore", lambda _, state: copy_of(state))


@mutant("sum", "none", "state")
def sums_are_formed_in_order_of_arrival(patch: pytest.MonkeyPatch) -> None:
    class ArrivalSum(TreeSum[Any]):
        come = 0

        def add(self, index: int, value: Any) -> None:
            self.come += 1
            self._halves[0] = self._halves[0] + value if self._halves else value

        @property
        def complete(self) -> bool:
            return self.come == self.count

    patch.setattr(aggregation, "TreeSum", ArrivalSum)


# What differs (rules 9, 10, 19).


@mutant("9", "differing-repeat", "assessment")
def a_differing_repeat_is_taken_for_the_same(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Assessment.REPEAT_DIFFERS, Assessment.REPEAT)(patch)


@mutant("9", "differing-repeat", "assessment")
def the_digest_covers_the_gradient_alone(patch: pytest.MonkeyPatch) -> None:
    for module in (aggregation, conflicting_results):
        patch.setattr(module, "digest_of", lambda result: digest(result.gradient))


@mutant("9", "differing-repeat", "banned")
def a_dispute_is_counted_and_not_settled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConflictingResults, "begin", lambda *_: None)


@mutant("19", "differing-repeat", "banned", "refused")
def all_sides_of_a_dispute_are_banned(patch: pytest.MonkeyPatch) -> None:
    def strict(self: ConflictingResults, own: Computed, now: float) -> None:
        sides = self.open.pop((own.shard, own.step))
        workers = {member.identities for member in self._membership.workers()}
        for names in {names for names, _ in sides} | workers:
            self._admission.ban(names, "there was a dispute", now)

    patch.setattr(ConflictingResults, "settle", strict)


@mutant("10", "broken", "result")
def a_wrong_gradient_that_was_applied_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lifecycle, "resume_before", lambda *_: None)


@mutant("10", "broken", "resume")
def the_run_resumes_after_the_wrong_step(patch: pytest.MonkeyPatch) -> None:
    resume_before = Lifecycle.resume_before
    patch.setattr(Lifecycle, "resume_before", lambda self, step: resume_before(self, step + 1))


@mutant("10", "broken", "resume", "resumed state")
def the_next_server_takes_the_newest_checkpoint(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Disk, "recover", lambda _: None)


@mutant("19", "broken", "banned")
def a_resumed_run_forgets_who_is_banned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(admission, "RememberBans", lambda _: RememberBans({}))
