"""Planted bugs in what is counted, granted, kept and summed: rules 1 to 10."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from manychar.numerics import training_step as trainer
from manychar.numerics.training_step import TrainingState
from manychar.numerics.tree_reduction import TreeSum
from manychar.protocol import aggregation, conflicting_results
from manychar.protocol.aggregation import Aggregation, Assessment, as_frame
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.effects import Compute, Effect, Result, ResumeBefore
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.membership import Lease
from manychar.protocol.messages import Gradient, Names, digest
from manychar.protocol.server import ParameterServer
from manychar.protocol.worker import Worker
from tests.simulation.disk import copy_of
from tests.simulation.planted import Plant, mutant
from tests.simulation.world import World

# What is counted (rules 1, 2, 6, 7).


@mutant("1", "loss", "stuck")
def a_grant_again_elicits_nothing(patch: pytest.MonkeyPatch) -> None:
    queue = Worker._queue

    def deaf(self: Worker, lease: Any, step: int, queued: Any) -> list[Effect]:
        return [] if step in lease.finished else queue(self, lease, step, queued)

    patch.setattr(Worker, "_queue", deaf)


@mutant("1", "loss", "computed twice")
def a_worker_forgets_what_it_has_sent(patch: pytest.MonkeyPatch) -> None:
    computed = Worker.computed

    def forgetful(self: Worker, result: Result, now: float) -> list[Effect]:
        effects = computed(self, result, now)
        for lease in self._leases.values():
            lease.finished.clear()
        return effects

    patch.setattr(Worker, "computed", forgetful)


@mutant("1", "mixed", "unit")
def a_worker_starts_from_its_newest_hidden_state(patch: pytest.MonkeyPatch) -> None:
    take = Worker._take_in_hand

    def newest(self: Worker, lease: Any, step: int, shard: int) -> Compute:
        lease.hidden[step] = lease.hidden[max(lease.hidden)]
        return take(self, lease, step, shard)

    patch.setattr(Worker, "_take_in_hand", newest)


@mutant("2", "confused", "counted", "assessment")
def neither_weights_nor_hidden_state_are_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Aggregation, "_is_from_here", lambda *_: True)


@mutant("2", "confused", "counted", "assessment")
def no_staleness_check(patch: pytest.MonkeyPatch) -> None:
    is_from_here = Aggregation._is_from_here

    def hidden_only(self: Aggregation, shard: Any, gradient: Gradient) -> bool:
        version = self.version(gradient.step)
        return is_from_here(self, shard, dataclasses.replace(gradient, version=version))

    patch.setattr(Aggregation, "_is_from_here", hidden_only)


@mutant("2", "confused", "counted", "assessment")
def the_hidden_state_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    def version_only(self: Aggregation, shard: Any, gradient: Gradient) -> bool:
        return gradient.version == self.version(gradient.step)

    patch.setattr(Aggregation, "_is_from_here", version_only)


def _assessed_as(assessment: Assessment, instead: Assessment) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        assess = Aggregation.assess

        def assessed(self: Aggregation, gradient: Gradient) -> Assessment:
            said = assess(self, gradient)
            return instead if said is assessment else said

        patch.setattr(Aggregation, "assess", assessed)

    return plant


@mutant("6", "duplication", "counted", "assessment", "exception")
def a_repeat_is_counted_twice(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Assessment.REPEAT, Assessment.WANTED)(patch)


@mutant("6", "reordering", "counted", "exception")
def a_stale_gradient_counts(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Assessment.REPEAT_TOO_OLD, Assessment.WANTED)(patch)


@mutant("6", "none", "grant", "weights")
def steps_after_the_last_are_granted(patch: pytest.MonkeyPatch) -> None:
    def endless(self: Aggregation, step: int) -> range:
        return range(max(step, self.state.step), self.state.step + self.definition.delay + 1)

    patch.setattr(Aggregation, "open_after", endless)


@mutant("7", "reordering", "counted", "exception")
def steps_of_a_shard_are_accepted_in_any_order(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Assessment.EARLY, Assessment.WANTED)(patch)


# What is granted and kept (rules 3, 4, 5, 8, 9).


class _Misread:
    """The steps as a mistaken Leasing reads them."""

    def __init__(self, steps: Aggregation, **instead: Callable[..., Any]) -> None:
        self._steps = steps
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steps, name)


def _misreading(
    patch: pytest.MonkeyPatch, instead: Callable[[Aggregation], dict[str, Any]]
) -> None:
    grant = LeaseGrants.grant

    def misreading(self: LeaseGrants, lease: Lease, now: float) -> None:
        steps = self._steps
        self._steps = _Misread(steps, **instead(steps))  # type: ignore[assignment]
        grant(self, lease, now)
        self._steps = steps

    patch.setattr(LeaseGrants, "grant", misreading)


@mutant("3", "join", "grant")
def a_grant_begins_at_the_step_of_the_server(patch: pytest.MonkeyPatch) -> None:
    def at_the_servers(steps: Aggregation) -> dict[str, Any]:
        step = steps.state.step
        return {
            "next": lambda _: step,
            "hidden": lambda shard: as_frame(steps._shards[shard].hidden[step]),
        }

    _misreading(patch, at_the_servers)


@mutant("3", "join", "grant")
def a_takeover_forgets_the_hidden_state(patch: pytest.MonkeyPatch) -> None:
    _misreading(patch, lambda steps: {"hidden": lambda shard: bytes(len(steps.hidden(shard)))})


@mutant("3", "join", "grant")
def a_grant_brings_the_newest_weights(patch: pytest.MonkeyPatch) -> None:
    def newest(steps: Aggregation) -> dict[str, Any]:
        return {"weights": lambda _: as_frame(steps.state.parameters.flat)}

    _misreading(patch, newest)


@mutant("4", "none", "state")
def a_checkpoint_has_the_newest_hidden_states(patch: pytest.MonkeyPatch) -> None:
    apply = Aggregation.apply

    def newest(self: Aggregation) -> None:
        apply(self)
        hidden = np.stack([shard.hidden[shard.next] for shard in self._shards])
        self.state = dataclasses.replace(self.state, hidden=hidden)

    patch.setattr(Aggregation, "apply", newest)


@mutant("5", "server-crash", "resumed state")
def previous_weights_are_forgotten_on_resume(patch: pytest.MonkeyPatch) -> None:
    def restore(self: World, state: TrainingState) -> TrainingState:
        return dataclasses.replace(state, previous=(state.parameters.flat,) * len(state.previous))

    patch.setattr(World, "restore", restore)


@mutant("5", "none", "weights", "grant")
def weights_are_one_version_off(patch: pytest.MonkeyPatch) -> None:
    def later(self: Aggregation, step: int) -> memoryview:
        newest = self.state.step + self.definition.delay
        return as_frame(self.state.version_for(min(step + 1, newest)))

    patch.setattr(Aggregation, "weights", later)


@mutant("8", "none", "state", "grant")
def the_server_zeroes_at_a_wrap(patch: pytest.MonkeyPatch) -> None:
    accept = Aggregation.accept

    def zeroing(self: Aggregation, gradient: Gradient, sender: Names) -> None:
        accept(self, gradient, sender)
        after = gradient.step + 1
        if self.batch(gradient.shard, after).fresh:
            hidden = self._shards[gradient.shard].hidden
            hidden[after] = np.zeros_like(hidden[after])

    patch.setattr(Aggregation, "accept", zeroing)


@mutant("8", "none", "sent gradient")
def nobody_zeroes_at_a_wrap(patch: pytest.MonkeyPatch) -> None:
    take = Worker._take_in_hand

    def stale(self: Worker, lease: Any, step: int, shard: int) -> Compute:
        return dataclasses.replace(take(self, lease, step, shard), fresh=False)

    patch.setattr(Worker, "_take_in_hand", stale)


@mutant("9", "mixed", "weights", "unit", "checkpoint")
def a_version_is_overwritten_before_it_is_sent(patch: pytest.MonkeyPatch) -> None:
    apply = trainer.apply

    def in_place(state: TrainingState, definition: Any, **sums: Any) -> TrainingState:
        kept = (*state.previous, state.parameters.flat.copy())[1:]
        after = apply(state, definition, **sums)
        state.parameters.flat[...] = after.parameters.flat
        return dataclasses.replace(after, parameters=state.parameters, previous=kept)

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


# What differs (rule 10).


@mutant("10", "differing-repeat", "assessment")
def a_differing_repeat_is_taken_for_the_same(patch: pytest.MonkeyPatch) -> None:
    _assessed_as(Assessment.REPEAT_DIFFERS, Assessment.REPEAT)(patch)


@mutant("10", "differing-repeat", "assessment")
def the_digest_covers_the_gradient_alone(patch: pytest.MonkeyPatch) -> None:
    for module in (aggregation, conflicting_results):
        patch.setattr(module, "digest_of", lambda result: digest(result.gradient))


@mutant("10", "differing-repeat", "banned")
def a_dispute_is_counted_and_not_settled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConflictingResults, "begin", lambda *_: None)


@mutant("10", "differing-repeat", "banned", "refused")
def all_sides_of_a_dispute_are_barred(patch: pytest.MonkeyPatch) -> None:
    def strict(self: ParameterServer, shard: int, step: int, result: Any, now: float) -> Any:
        for names in {
            names for names, _ in self.conflicting_results.open.pop((shard, step))
        } | _names(self):
            self.admission.bar(names, "there was a dispute", now)
        return self.outbox.collect()

    patch.setattr(ParameterServer, "computed", strict)


def _names(machine: ParameterServer) -> set[Names]:
    return {member.names for member in machine.membership.workers()}


def _without_going_back(
    patch: pytest.MonkeyPatch, instead: Callable[[ResumeBefore], list[Effect]]
) -> None:
    computed = ParameterServer.computed

    def settle(self: ParameterServer, *result: Any) -> list[Effect]:
        phase = self.lifecycle.phase
        effects: list[Effect] = []
        for effect in computed(self, *result):
            effects += instead(effect) if isinstance(effect, ResumeBefore) else [effect]
        if not any(isinstance(effect, ResumeBefore) for effect in effects):
            self.lifecycle.phase = phase
        return effects

    patch.setattr(ParameterServer, "computed", settle)


@mutant("10", "broken", "result")
def a_wrong_gradient_that_was_applied_stays(patch: pytest.MonkeyPatch) -> None:
    _without_going_back(patch, lambda _: [])


@mutant("10", "broken", "went back")
def the_way_back_ends_after_the_wrong_step(patch: pytest.MonkeyPatch) -> None:
    _without_going_back(patch, lambda back: [ResumeBefore(back.step + 1, back.banned)])


@mutant("10", "broken", "banned")
def the_way_back_forgets_who_is_barred(patch: pytest.MonkeyPatch) -> None:
    _without_going_back(patch, lambda back: [ResumeBefore(back.step, {})])
