"""Planted bugs of relays: rules 17 to 20, and those of a server and a worker that they share."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from manychar.numerics.tree_reduction import Range
from manychar.protocol import held_units
from manychar.protocol.admission import Admission
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.effects import Effect
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.membership import Lease, Membership
from manychar.protocol.messages import Frame, Heartbeat, RunAndTerm, Unit, UnitState, Welcome
from manychar.protocol.relay import Relay, RelayServer
from manychar.protocol.relay_step import RelayStep
from tests.simulation.planted import mutant, plant_handler


@mutant("17", "relays", "grant")
def a_relay_forwards_the_weights_of_the_step_before(patch: pytest.MonkeyPatch) -> None:
    right = RelayStep.open

    def late(self: RelayStep, step: int, weights: Frame, **options: Any) -> None:
        before = self.weights if self.state.step >= 0 else weights
        right(self, step, before, **options)

    patch.setattr(RelayStep, "open", late)


@mutant("17", "relays", "relayed result")
def a_relay_forms_sums_in_the_order_of_arrival(patch: pytest.MonkeyPatch) -> None:
    def running(self: RelayStep, node: Range) -> Any:
        total: Any = None
        for each, (_, frame) in self._open.delivered.items():
            if node[0] <= each[0] and each[1] <= node[1]:
                value = np.frombuffer(frame, self._dtype)
                total = value if total is None else total + value
        return self._sums.nodes[node] if total is None else total

    patch.setattr(RelayStep, "_sum", running)


@mutant("17", "relays", "stale", "relayed result")
def a_relay_answers_with_the_unit_of_the_step_before(patch: pytest.MonkeyPatch) -> None:
    right = held_units.HeldLease.advance

    def keeps(self: held_units.HeldLease, *, by: int) -> None:
        finished = self.finished
        right(self, by=by)
        self.finished = finished

    patch.setattr(held_units.HeldLease, "advance", keeps)
    patch.setattr("tests.simulation.worker_oracle._check_finished", lambda *_: None)
    patch.setattr("tests.simulation.worker_oracle._check_kept", lambda *_: None)


@mutant("17", "relays+worker-crash", "hidden", seed=2)
def a_relay_hides_a_lost_worker(patch: pytest.MonkeyPatch) -> None:
    right = Relay._progress

    def proud(self: Relay, run_and_term: RunAndTerm) -> Heartbeat:
        most, heartbeat = self._told_workers, right(self, run_and_term)
        self._told_workers = max(most, heartbeat.workers)
        return dataclasses.replace(heartbeat, workers=self._told_workers)

    patch.setattr(Relay, "_progress", proud)


@mutant("17", "relays+hang", "lost", "hidden", "stuck")
def a_relay_waits_for_a_silent_worker(patch: pytest.MonkeyPatch) -> None:
    right = RelayServer.__init__

    def patient(self: RelayServer, *args: Any, **options: Any) -> None:
        right(self, *args, **options)
        patch.setattr(self.admission, "check_silence", lambda _: None)

    patch.setattr(RelayServer, "__init__", patient)


@mutant("17", "relays+moves+worker-crash", "exception", "relayed result", seed=36)
def a_relay_sends_exactly_the_run(patch: pytest.MonkeyPatch) -> None:
    def exact(self: RelayStep, run: Range) -> Range | None:
        return run if all(i in self._open.senders for i in range(run[0], run[1] + 1)) else None

    patch.setattr(RelayStep, "unit_of", exact)


@mutant("17", "relays+hang", "not passed up", seed=29)
def a_relay_drops_what_is_not_of_its_shards(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Relay, "pass_up", lambda *_: None)


@mutant("3", "relayed", "weights", seed=40)
def a_relay_sends_weights_alone_after_a_step_that_was_not_finished(
    patch: pytest.MonkeyPatch,
) -> None:
    def lazy(self: Membership, lease: Lease, step: int) -> bool:
        return all(self._accepted_under[i][1] == lease.number for i in lease.numbers)

    patch.setattr(Membership, "can_continue", lazy)


@mutant("16", "relayed", "unheld", seed=371)
def a_relay_does_not_cut_anew_what_it_revoked(patch: pytest.MonkeyPatch) -> None:
    right = LeaseGrants.keep_only

    def lazy(self: LeaseGrants, shards: Any) -> None:
        must = self._membership._must_cut
        right(self, shards)
        self._membership._must_cut = must

    patch.setattr(LeaseGrants, "keep_only", lazy)


@mutant("2", "relays+confused", "sums", "relayed result", "exception")
def a_relay_takes_units_from_another_state(patch: pytest.MonkeyPatch) -> None:
    right = RelayStep.assess

    def blind(self: RelayStep, *unit: Any) -> Counter | None:
        found = right(self, *unit)
        return None if found is Counter.UNITS_FROM_WRONG_STATE else found

    patch.setattr(RelayStep, "assess", blind)


@mutant("13", "relays+loss", "stuck")
def a_relay_calls_queued_what_it_was_not_granted(patch: pytest.MonkeyPatch) -> None:
    def boastful(self: Relay) -> tuple[Unit, ...]:
        leases = self._leases.values()
        return tuple(Unit(e.number, *e.shards, self._step, UnitState.QUEUED) for e in leases)

    patch.setattr(Relay, "_units", boastful)


@mutant("11", "relays+server-crash", "another term")
def a_relay_keeps_its_members_over_a_new_term(patch: pytest.MonkeyPatch) -> None:
    right = Relay._welcome

    def same(self: Relay, welcome: Welcome, now: float) -> list[Effect]:
        before, effects = self.below, right(self, welcome, now)
        if before.spec.term:
            self.below = before
        return effects

    plant_handler(patch, Relay, "_welcome", same)


@mutant("19", "relays+broken", "banned")
def a_relay_is_banned_for_its_worker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConflictingResults, "_asks_relays", lambda *_: False)


@mutant("19", "relays+broken", "banned")
def a_relay_names_itself_for_its_worker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RelayStep, "senders_of_wrong", lambda *_: set())


@mutant("19", "relays+broken", "banned")
def a_relay_names_the_relay_below_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Membership, "relays", lambda _: [])


@mutant("19", "relays+broken", "banned")
def a_relay_forgets_who_sent_what_when_the_step_ends(patch: pytest.MonkeyPatch) -> None:
    right = RelayStep._start_step

    def forgets(self: RelayStep) -> None:
        self._steps.clear()
        right(self)

    patch.setattr(RelayStep, "_start_step", forgets)


@mutant("19", "relays+broken", "banned")
def a_relay_forgets_who_sent_what_it_passed_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RelayStep, "note_passed_up", lambda *_: None)


@mutant("19", "relays+broken", "banned")
def bans_do_not_go_down(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "_tell_relays", lambda *_: None)
