"""Planted bugs in what is counted, granted, kept and summed: rules 1 to 10, and 19."""

import dataclasses
import functools
import operator
from typing import Any

import pytest

from manychar.numerics import training_step as trainer
from manychar.numerics.training_step import TrainingState
from manychar.numerics.tree_reduction import Range, TreeSum, cover
from manychar.protocol import admission, aggregation, held_units, lease_grants, worker
from manychar.protocol.aggregation import Aggregation, Digests
from manychar.protocol.conflicting_results import Conflict, ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.effects import Effect, RememberBans, Send
from manychar.protocol.events import Computed
from manychar.protocol.lifecycle import Lifecycle
from manychar.protocol.membership import Membership
from manychar.protocol.messages import Frame, Identities, UnitResult
from manychar.protocol.next_units import NextUnits
from manychar.protocol.worker import Worker
from tests.simulation.disk import Disk, copy_of
from tests.simulation.lease_oracle import LeaseOracle
from tests.simulation.planted import Plant, mutant, plant_handler
from tests.simulation.worker_oracle import WorkerOracle
from tests.simulation.world import World

# What is counted (rules 1, 2, 4, 6).


@mutant("1", "loss", "stuck")
def a_grant_again_elicits_nothing(patch: pytest.MonkeyPatch) -> None:
    queue = Worker._queue

    def deaf(self: Worker, lease: Any, shards: Range, ids: Any) -> list[Effect]:
        return [] if shards in lease.finished else queue(self, lease, shards, ids)

    patch.setattr(Worker, "_queue", deaf)


@mutant("1", "loss", "computed twice")
def a_worker_forgets_what_it_has_sent(patch: pytest.MonkeyPatch) -> None:
    computed = Worker._computed

    def forgetful(self: Worker, event: Computed, now: float) -> list[Effect]:
        effects = computed(self, event, now)
        for lease in self._leases.values():
            lease.finished.clear()
        return effects

    plant_handler(patch, Worker, "_computed", forgetful)


@mutant("1 and 3", "other-cut+loss", "unit", seed=22)
def a_unit_begins_with_the_hidden_states_of_any_step(patch: pytest.MonkeyPatch) -> None:
    advance = held_units.HeldLease.advance

    def keeping(self: Any, *, by: int) -> None:
        before = self.hidden
        advance(self, by=by)
        self.hidden = before | self.hidden

    patch.setattr(held_units.HeldLease, "advance", keeping)
    patch.setattr(Membership, "can_continue", lambda *_: True)
    patch.setattr(LeaseOracle, "check_new_weights", lambda *_: None)


@mutant("1", "none", "unit")
def a_range_goes_on_from_its_hidden_states_of_the_step_before(patch: pytest.MonkeyPatch) -> None:
    finish = held_units.HeldLease.finish

    def standing(self: Any, shards: Range, result: UnitResult, _: list[Frame]) -> None:
        hidden = [self.hidden[shard] for shard in range(shards[0], shards[1] + 1)]
        finish(self, shards, result, hidden)

    patch.setattr(held_units.HeldLease, "finish", standing)


@mutant("1", "other-cut+loss", "kept", seed=3)
def what_is_finished_is_kept_by_lease_and_not_by_range(patch: pytest.MonkeyPatch) -> None:
    queue = Worker._queue

    def by_lease(self: Worker, lease: Any, shards: Range, ids: Any) -> list[Effect]:
        kept: list[Effect] = [Send(result) for result in lease.finished.values()]
        return kept[:1] or queue(self, lease, shards, ids)

    patch.setattr(Worker, "_queue", by_lease)


@mutant("20", "other-cut+loss", "unbounded", seed=53)
def units_that_overlap_are_all_kept(patch: pytest.MonkeyPatch) -> None:
    finish = held_units.HeldLease.finish

    def hoarding(self: Any, shards: Range, result: UnitResult, hidden: list[Frame]) -> None:
        before = dict(self.finished)
        finish(self, shards, result, hidden)
        self.finished = before | self.finished

    patch.setattr(held_units.HeldLease, "finish", hoarding)


def _inputs_are_right(*, weights: bool, hidden: bool) -> Plant:
    """Have some digests of a result's inputs taken for those of the server."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        assess = Aggregation.assess

        def assessed(self: Aggregation, result: UnitResult) -> Counter | None:
            step = self._steps.get(result.step)
            if step is not None and step.inputs is not None:
                step.compute_digests()
                if weights:
                    result = dataclasses.replace(result, weights_digest=step.weights_digest)
                if hidden:
                    digests = b"".join(step.hidden_digests[result.first : result.last + 1])
                    payload = result.payload._replace(digests=digests)
                    result = dataclasses.replace(result, payload=payload)
            return assess(self, result)

        patch.setattr(Aggregation, "assess", assessed)

    return plant


@mutant("2", "confused", "counted", "assessment", seed=2)
def the_hidden_states_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    _inputs_are_right(weights=False, hidden=True)(patch)


@mutant("2", "confused", "counted", "assessment", seed=1)
def the_weights_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    _inputs_are_right(weights=True, hidden=False)(patch)


@mutant("1, 2 and 3", "other-cut", "counted", "assessment", seed=22)
def a_unit_of_any_hidden_states_counts(patch: pytest.MonkeyPatch) -> None:
    a_unit_begins_with_the_hidden_states_of_any_step(patch)
    _inputs_are_right(weights=True, hidden=True)(patch)
    for check in ("computes", "sends"):
        patch.setattr(WorkerOracle, check, lambda *_: None)


def _assessed_as(assessment: Counter, instead: Counter | None) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        assess = Aggregation.assess

        def assessed(self: Aggregation, result: UnitResult) -> Counter | None:
            said = assess(self, result)
            return instead if said is assessment else said

        patch.setattr(Aggregation, "assess", assessed)

    return plant


@mutant("6", "loss", "weights", "grant", "exception")
def what_was_prepared_for_a_step_is_sent_at_another(patch: pytest.MonkeyPatch) -> None:
    right = NextUnits.of

    def any_that_is_here(self: NextUnits, lease: Any, number: int) -> Any:
        return self._units.get(lease.number) or right(self, lease, number)

    patch.setattr(NextUnits, "of", any_that_is_here)


@mutant("4", "duplication", "counted", "assessment", "exception")
def a_repeat_is_counted_twice(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Counter.UNITS_REPEATED, None)(patch)


@mutant("4", "broken", "counted", "assessment", "sums")
def a_result_that_is_not_finite_counts(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Counter.UNITS_NOT_FINITE, None)(patch)


@mutant("6", "reordering", "counted", "assessment", "exception", seed=6)
def a_stale_result_counts(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Counter.UNITS_REPEATED, None)(patch)
    _assessed_as(Counter.UNITS_NOT_COMPARED, None)(patch)


@mutant("3", "none", "grant", "asked again")
def steps_after_the_last_are_granted(patch: pytest.MonkeyPatch) -> None:
    def endless(self: Aggregation, shard: int) -> bool:
        return shard not in self._open.senders

    patch.setattr(Aggregation, "is_missing", endless)


# What is granted and kept (rules 3, 5, 6, 7, 8).


@mutant("3", "other-cut", "grant")
def a_shard_is_granted_whose_gradient_is_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Aggregation, "is_missing", lambda self, _: not self.closed)


@mutant("3", "join", "grant")
def a_takeover_forgets_the_hidden_states(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lease_grants, "as_frame", lambda hidden: bytes(hidden.nbytes))


@mutant("5", "none", "state")
def a_checkpoint_has_the_hidden_states_of_the_step_before(patch: pytest.MonkeyPatch) -> None:
    apply = Aggregation.apply

    def older(self: Aggregation) -> None:
        before = self.state.hidden
        apply(self)
        self.state = dataclasses.replace(self.state, hidden=before)

    patch.setattr(Aggregation, "apply", older)


@mutant("5", "none", "checkpoint", "state", seed=1)
def hidden_states_are_committed_when_they_are_accepted(patch: pytest.MonkeyPatch) -> None:
    accept = Aggregation.accept

    def hasty(self: Aggregation, result: UnitResult, sender: Identities) -> list[int]:
        new = accept(self, result, sender)
        self.state.hidden[new] = self._next_hidden[new]
        return new

    patch.setattr(Aggregation, "accept", hasty)
    patch.setattr(World, "restore", lambda _, state: copy_of(state))


@mutant("6", "none", "weights", "grant")
def weights_are_one_version_off(patch: pytest.MonkeyPatch) -> None:
    apply = Aggregation.apply

    def earlier(self: Aggregation) -> None:
        before = self.weights
        apply(self)
        self.weights = before

    patch.setattr(Aggregation, "apply", earlier)


@mutant("7", "none", "state", "grant")
def the_server_zeroes_at_a_wrap(patch: pytest.MonkeyPatch) -> None:
    accept = Aggregation.accept

    def zeroing(self: Aggregation, result: UnitResult, sender: Identities) -> list[int]:
        new = accept(self, result, sender)
        if self.corpus.is_fresh(result.step + 1):
            self._next_hidden[new] = 0
        return new

    patch.setattr(Aggregation, "accept", zeroing)


@mutant("7", "none", "sent result")
def nobody_zeroes_at_a_wrap(patch: pytest.MonkeyPatch) -> None:
    queue = Worker._queue

    def stale(self: Worker, lease: Any, shards: Range, ids: list[Frame]) -> list[Effect]:
        self._is_fresh = False
        return queue(self, lease, shards, ids)

    patch.setattr(Worker, "_queue", stale)


@mutant("8", "mixed", "weights", "grant", "unit", "checkpoint", seed=4)
def a_version_is_overwritten_before_it_is_sent(patch: pytest.MonkeyPatch) -> None:
    apply = trainer.apply

    def in_place(state: TrainingState, definition: Any, **sums: Any) -> TrainingState:
        after = apply(state, definition, **sums)
        state.parameters.flat[...] = after.parameters.flat
        return dataclasses.replace(after, parameters=state.parameters)

    patch.setattr(aggregation, "apply", in_place)
    patch.setattr(World, "restore", lambda _, state: copy_of(state))


# The sums.


@mutant("sum", "none", "sums", seed=1)
def sums_are_formed_in_order_of_arrival(patch: pytest.MonkeyPatch) -> None:
    class ArrivalSum(TreeSum[Any]):
        come = 0

        def put(self, node: Range, value: Any) -> None:
            self.come += node[1] - node[0] + 1
            total = sum(self.nodes.values(), start=value)
            self.nodes = {(0, self.come - 1): total}

    patch.setattr(aggregation, "TreeSum", ArrivalSum)


@mutant("sum", "none", "sent result", seed=1)
def a_cover_is_summed_from_left_to_right(patch: pytest.MonkeyPatch) -> None:
    class RunningSum(TreeSum[Any]):
        def __init__(self, count: int) -> None:
            super().__init__(count)
            self.leaves: dict[int, Any] = {}

        def put(self, node: Range, value: Any) -> None:
            self.leaves[node[0]] = value
            super().put(node, value)

        def sums(self) -> list[Any]:
            super().sums()
            nodes = [(0, self.count - 1)] if self.complete else sorted(self.nodes)
            return [
                functools.reduce(operator.add, [self.leaves[i] for i in range(a, b + 1)])
                for a, b in nodes
            ]

    patch.setattr(worker, "TreeSum", RunningSum)


@mutant("4", "other-cut", "sums", seed=7)
def an_overlapping_sum_is_added_to_what_is_below_it(patch: pytest.MonkeyPatch) -> None:
    class AddingSum(TreeSum[Any]):
        def put(self, node: Range, value: Any) -> None:
            below = [v for (a, b), v in self.nodes.items() if node[0] <= a and b <= node[1]]
            super().put(node, sum(below, start=value))

    patch.setattr(aggregation, "TreeSum", AddingSum)


@mutant("4", "other-cut", "sums", "exception", "counted", seed=2)
def an_overlapping_sum_is_held_beside_what_is_below_it(patch: pytest.MonkeyPatch) -> None:
    class KeepingSum(TreeSum[Any]):
        def put(self, node: Range, value: Any) -> None:
            below = {n: v for n, v in self.nodes.items() if node[0] <= n[0] and n[1] <= node[1]}
            super().put(node, value)
            self.nodes = below | self.nodes

    patch.setattr(aggregation, "TreeSum", KeepingSum)


# What differs (rules 9, 10, 19).


@mutant("9", "differing-repeat", "assessment")
def a_differing_repeat_is_taken_for_the_same(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Counter.UNITS_CONFLICTING, Counter.UNITS_REPEATED)(patch)


def _compares(kind: type[Any]) -> Plant:
    """Have only the digests of shards (int) or nodes (tuple) compared."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        digests_of = Aggregation.digests_of

        def some(self: Aggregation, result: UnitResult) -> Digests:
            digests = digests_of(self, result)
            return {of: each for of, each in digests.items() if isinstance(of, kind)}

        patch.setattr(Aggregation, "digests_of", some)

    return plant


@mutant("9", "differing-repeat", "assessment", seed=3)
def only_sums_are_compared(patch: pytest.MonkeyPatch) -> None:
    _compares(tuple)(patch)


@mutant("9", "differing-repeat", "assessment")
def no_sums_are_compared(patch: pytest.MonkeyPatch) -> None:
    _compares(int)(patch)


@mutant("9", "other-cut", "counted", "assessment", "banned", seed=6)
def a_repeat_is_compared_with_another_cut(patch: pytest.MonkeyPatch) -> None:
    accepted = Aggregation.accepted

    def by_first_shard(
        self: Aggregation, step: int, shards: Range
    ) -> list[tuple[Identities, Digests]]:
        claims = accepted(self, step, shards)
        sums = {of[0]: each for _, c in claims for of, each in c.items() if isinstance(of, tuple)}
        nodes = [node for node in cover(self.definition.shards, shards) if node[0] in sums]
        return [*claims, (("anyone", "anyone"), {node: sums[node[0]] for node in nodes})]

    patch.setattr(Aggregation, "accepted", by_first_shard)


@mutant("9", "differing-repeat", "banned")
def a_dispute_is_counted_and_not_settled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConflictingResults, "begin", lambda *_, **__: None)


@mutant("19", "differing-repeat", "banned", "refused", seed=2)
def all_sides_of_a_dispute_are_banned(patch: pytest.MonkeyPatch) -> None:
    def strict(self: ConflictingResults, conflict: Conflict, now: float) -> None:
        workers = {member.identities for member in self._membership.workers()}
        for names in {names for names, _ in conflict.claims} | workers:
            self._admission.ban(names, "there was a dispute", now)

    patch.setattr(ConflictingResults, "settle", strict)


@mutant("10", "broken", "result", "exception", "stuck", seed=4)
def a_wrong_result_that_was_applied_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lifecycle, "resume_before", lambda *_: None)


@mutant("10", "broken", "resume", seed=13)
def the_run_resumes_after_the_wrong_step(patch: pytest.MonkeyPatch) -> None:
    resume_before = Lifecycle.resume_before
    patch.setattr(Lifecycle, "resume_before", lambda self, step: resume_before(self, step + 1))


@mutant("10", "broken", "resume", "resumed state", seed=19)
def the_next_server_takes_the_newest_checkpoint(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Disk, "recover", lambda _: None)


@mutant("19", "broken", "banned")
def a_resumed_run_forgets_who_is_banned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(admission, "RememberBans", lambda _: RememberBans({}))
