"""Stories of the worker: what the server says, and what it computes and sends."""

import dataclasses
from typing import Any

import pytest

from manychar.numerics.tree_reduction import Range
from manychar.protocol.client_session import ClientPhase
from manychar.protocol.effects import Compute, ComputeFingerprint, Effect, Finish, Log
from manychar.protocol.events import (
    DeadlinePassed,
    FingerprintComputed,
    HeartbeatDue,
    LeaveRequested,
    MailboxEmpty,
    PeerError,
    ProtocolError,
    Received,
)
from manychar.protocol.messages import (
    Alive,
    Done,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    NewWeights,
    Ready,
    Refused,
    Reset,
    Revoke,
    Unit,
    UnitResult,
    UnitState,
    Welcome,
)
from manychar.protocol.run_spec import dimensions_of
from manychar.protocol.unit_payload import folded_digest
from manychar.protocol.worker import Worker
from tests.protocol.stage import (
    IN_RUN,
    SESSION,
    TERM,
    computed,
    hello,
    only,
    said,
    sent,
    status,
    unit_result,
)
from tests.simulation.reference import Reference, reference

SILENCE, SHARDS = 2.0, 5


class Bench:
    """One worker, and a server that is played by the test."""

    def __init__(self, *, connect_timeout: float = 60.0) -> None:
        self.known: Reference = reference(SHARDS, 1, 11)
        self.worker = Worker(
            hello("ann"), server="tcp://there", connect_timeout=connect_timeout, now=0.0
        )

    def phase(self) -> ClientPhase:
        """Return its phase."""
        return self.worker.phase

    def hear(self, message: Any, now: float = 0.0) -> list[Effect]:
        """Let the server say something."""
        return self.worker.handle(Received(message), now)

    def welcome(self, **changes: Any) -> Welcome:
        message = Welcome(
            **IN_RUN,
            dimensions=dimensions_of(self.known.definition, len(self.known.vocabulary)),
            numerics="portable",
            seed=0,
            silence=SILENCE,
            vocabulary=b"",
            fingerprint="same",
            libraries={},
        )
        return dataclasses.replace(message, **changes)

    def at_work(self) -> "Bench":
        """Be welcomed, and say Ready."""
        self.hear(self.welcome())
        self.worker.handle(FingerprintComputed("bits", {}, 0.1), 0.0)
        return self

    def grant(
        self, lease: int, shards: Range, step: int = 0, *, of: Range | None = None, **changes: Any
    ) -> list[Effect]:
        """Grant the shards at a step, under a lease of the range `of`, or of just these."""
        first, last = shards
        lease_first, lease_last = of or shards
        message = Grant(
            **IN_RUN,
            number=0,
            lease=lease,
            lease_first=lease_first,
            lease_last=lease_last,
            first=first,
            last=last,
            step=step,
            fresh=self.known.streams.is_fresh(step),
            weights=self.known.weights[step],
            hidden=b"".join(self.known.hidden[step][first : last + 1]),
            ids=self.known.streams.ids_at(first, last, step).tobytes(),
        )
        return self.hear(dataclasses.replace(message, **changes))

    def weights(self, step: int, lease: int, shards: Range, **changes: Any) -> list[Effect]:
        """Send the weights of a step, with the unit that they open."""
        message = NewWeights(
            **IN_RUN,
            number=0,
            lease=lease,
            first=shards[0],
            last=shards[1],
            step=step,
            fresh=self.known.streams.is_fresh(step),
            weights=self.known.weights[step],
            ids=self.known.streams.ids_at(*shards, step).tobytes(),
        )
        return self.hear(dataclasses.replace(message, **changes))

    def idle(self) -> bool:
        """Whether it has nothing to compute, with its mailbox read to the end."""
        return self.worker.handle(MailboxEmpty(), 0.0) == []

    def begin(self) -> Compute:
        """Let it begin a shard, with its mailbox read to the end."""
        return only(self.worker.handle(MailboxEmpty(), 0.0), Compute)

    def finish(self, shard: Compute) -> list[Effect]:
        """Let it have computed a shard."""
        return self.worker.handle(computed(shard, self.known, seconds=0.2), 0.0)

    def compute_all(self) -> list[Effect]:
        """Let it compute until there is nothing left to do."""
        effects: list[Effect] = []
        while unit := self.worker.handle(MailboxEmpty(), 0.0):
            effects += self.finish(only(unit, Compute))
        return effects

    def heartbeat(self) -> Heartbeat:
        self.worker.session.next_heartbeat = 0.0
        return only(self.worker.handle(HeartbeatDue(), 0.0), Heartbeat)

    def units(self) -> set[Unit]:
        """Return the units of its next heartbeat."""
        return set(self.heartbeat().units)

    def heard(self) -> int:
        """Return the number that its next heartbeat echoes."""
        return self.heartbeat().heard


def names(effects: list[Effect]) -> list[tuple[int, Range, int]]:
    """Return the lease, shards and step of the results that are sent."""
    return [(each.lease, (each.first, each.last), each.step) for each in sent(effects, UnitResult)]


def test_what_the_next_weights_begin_with_is_made_while_there_is_nothing_to_compute() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    assert not bench.worker.expected_weights
    bench.compute_all()
    assert bench.idle()
    (known,) = bench.worker.expected_weights.values()
    assert known == {**IN_RUN, "lease": 1, "first": 0, "last": 1, "step": 1}
    assert names(bench.weights(1, 1, (0, 1))) == []
    bench.compute_all()
    (known,) = bench.worker.expected_weights.values()
    assert known["step"] == 2
    bench.hear(Reset(**IN_RUN | {"term": TERM + 1}))
    bench.hear(bench.welcome(term=TERM + 1))
    bench.worker.handle(FingerprintComputed("bits", {}, 0.1), 0.0)
    bench.grant(5, (1, 1), term=TERM + 1)
    bench.compute_all()
    (known,) = bench.worker.expected_weights.values()
    assert (known["term"], known["lease"], known["first"], known["step"]) == (TERM + 1, 5, 1, 1)


def test_it_connects_computes_its_fingerprint_and_says_ready() -> None:
    bench = Bench()
    assert only(bench.worker.handle(DeadlinePassed(), 0.0), Hello).name == "ann"
    assert bench.worker.handle(DeadlinePassed(), 0.1) == []
    assert only(bench.worker.handle(DeadlinePassed(), 0.2), Hello)
    assert only(bench.hear(bench.welcome(), 0.3), ComputeFingerprint)
    assert bench.phase() is ClientPhase.CONNECTING
    ready = only(bench.worker.handle(FingerprintComputed("bits", {"blas": "x"}, 0.1), 0.4), Ready)
    assert (ready.fingerprint, ready.term, ready.longest_piece) == ("bits", TERM, 0.1)
    assert bench.phase() is ClientPhase.CONNECTED


def test_a_unit_counts_as_a_heartbeat_for_five_seconds_at_most() -> None:
    bench = Bench().at_work()
    session = bench.worker.session
    assert only(bench.worker.handle(DeadlinePassed(), 0.0), Heartbeat)
    sent_at = []
    for step in range(1, 40):
        now = 0.2 * step
        session.sent_unit(now)
        if session.next_heartbeat <= now:
            sent_at += [now for _ in sent(bench.worker.handle(DeadlinePassed(), now), Heartbeat)]
    assert sent_at == [pytest.approx(5.0)]


def test_a_unit_that_it_sends_postpones_its_heartbeat() -> None:
    bench = Bench().at_work()
    bench.worker.handle(DeadlinePassed(), 0.0)
    bench.grant(1, (0, 0))
    shard = only(bench.worker.handle(MailboxEmpty(), 0.0), Compute)
    bench.worker.handle(computed(shard, bench.known, seconds=0.2), 0.4)
    assert bench.worker.session.next_heartbeat == pytest.approx(0.4 + SILENCE / 4)


def test_without_a_range_it_sends_a_heartbeat_every_five_seconds() -> None:
    bench = Bench().at_work()
    session = bench.worker.session
    assert only(bench.worker.handle(DeadlinePassed(), 0.0), Heartbeat)
    assert session.next_heartbeat == 5.0
    assert bench.worker.handle(DeadlinePassed(), 4.9) == [], "the server is not silent yet"
    bench.grant(1, (0, 0))  # at 0.0
    assert session.next_heartbeat == SILENCE / 4
    assert only(bench.worker.handle(DeadlinePassed(), 0.5), Heartbeat).units
    assert session.next_heartbeat == 0.5 + SILENCE / 4
    bench.hear(Revoke(**IN_RUN, lease=1), 0.6)
    bench.worker.handle(DeadlinePassed(), 1.0)
    assert session.next_heartbeat == 6.0


def test_it_computes_a_range_shard_by_shard_and_sends_the_sums_of_its_cover_once() -> None:
    bench = Bench().at_work()
    assert bench.grant(7, (1, 4)) == []
    order = []
    for _ in range(3):
        shard = bench.begin()
        order.append((shard.shard, shard.step, shard.fresh))
        assert bytes(shard.hidden) == bench.known.hidden[0][shard.shard]
        assert bench.finish(shard) == []
    result = only(bench.finish(bench.begin()), UnitResult)
    assert order == [(1, 0, True), (2, 0, True), (3, 0, True)]
    right = unit_result(bench.known, 1, 4, 0, lease=7)
    assert len(result.payload.sums) == 3, "shard 1, shards 2 … 3, shard 4"
    assert result == dataclasses.replace(right, seconds=result.seconds)
    assert result.seconds == pytest.approx(0.2), "of one shard"


@pytest.mark.parametrize("shards", [(a, b) for a in range(SHARDS) for b in range(a, SHARDS)])
def test_the_sums_of_every_range_are_those_of_the_tree(shards: Range) -> None:
    bench = Bench().at_work()
    bench.grant(1, shards)
    result = only(bench.compute_all(), UnitResult)
    assert result.payload == unit_result(bench.known, *shards, 0).payload


def test_it_names_the_weights_that_it_used() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1), 3)
    result = only(bench.compute_all(), UnitResult)
    assert result.weights_digest == folded_digest(bench.known.weights[3])


def test_it_takes_its_lowest_shards_first_with_the_mailbox_emptied() -> None:
    bench = Bench().at_work()
    bench.grant(1, (4, 4))
    bench.grant(2, (2, 3))
    shard = bench.begin()
    assert shard.shard == 2
    bench.grant(3, (0, 0))
    bench.finish(shard)
    assert names(bench.compute_all()) == [(2, (2, 3), 0), (3, (0, 0), 0), (1, (4, 4), 0)]


def test_weights_that_come_while_it_computes_end_the_unit_in_hand() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    late = bench.begin()
    bench.weights(1, 1, (0, 1))
    assert bench.finish(late) == [], "its step is applied: nobody wants it"
    assert bench.idle(), "and it lacks the hidden states of step 1"
    bench.grant(1, (0, 1), 1)
    assert bench.begin().step == 1


def test_a_unit_whose_step_is_applied_is_abandoned_between_two_shards() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 3))
    bench.finish(bench.begin())
    bench.grant(2, (4, 4), 1)
    shard = bench.begin()
    assert (shard.shard, shard.step) == (4, 1)
    assert names(bench.finish(shard)) == [(2, (4, 4), 1)]
    assert bench.idle()


def test_a_unit_whose_session_is_over_is_abandoned_between_two_shards() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    bench.finish(bench.begin())
    bench.hear(bench.welcome(session=SESSION + 1))
    bench.worker.handle(FingerprintComputed("bits", {}, 0.1), 0.0)
    assert bench.idle()
    bench.grant(1, (0, 1), session=SESSION + 1)
    result = only(bench.compute_all(), UnitResult)
    assert result.session == SESSION + 1
    assert result.payload == unit_result(bench.known, 0, 1, 0).payload


def test_a_result_of_a_shard_does_not_end_in_the_unit_of_another_session() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    shard = bench.begin()
    bench.hear(bench.welcome(session=SESSION + 1))
    assert bench.finish(shard) == []
    bench.worker.handle(FingerprintComputed("bits", {}, 0.1), 0.0)
    bench.grant(1, (0, 0), session=SESSION + 1)
    assert only(bench.compute_all(), UnitResult).session == SESSION + 1


def test_the_steps_of_a_range_chain_through_its_own_hidden_states() -> None:
    bench = Bench().at_work()
    bench.grant(1, (1, 3))
    for step in range(5):
        result = only(bench.compute_all(), UnitResult)
        assert result.payload == unit_result(bench.known, 1, 3, step).payload
        bench.weights(step + 1, 1, (1, 3))


def test_the_hidden_states_of_several_grants_of_a_lease_chain_into_all_of_its_range() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 0), of=(0, 3))
    bench.grant(1, (2, 3), of=(0, 3))
    assert names(bench.compute_all()) == [(1, (0, 0), 0), (1, (2, 3), 0)]
    bench.weights(1, 1, (0, 3))
    assert bench.idle(), "somebody else computed shard 1"
    bench.grant(1, (1, 1), 1, of=(0, 3))
    assert names(bench.compute_all()) == [(1, (1, 1), 1)]
    bench.grant(1, (0, 3), 2)
    bench.compute_all()
    bench.weights(3, 1, (0, 3))
    assert (
        only(bench.compute_all(), UnitResult).payload == unit_result(bench.known, 0, 3, 3).payload
    )


@pytest.mark.parametrize(("lease", "shards"), [(2, (0, 1)), (1, (0, 0)), (1, (0, 2))])
def test_weights_for_a_lease_that_it_does_not_hold_bring_no_unit(lease: int, shards: Range) -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    bench.compute_all()
    bench.weights(1, lease, shards)
    assert bench.idle()


def test_weights_two_steps_later_find_no_hidden_states() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    bench.compute_all()
    bench.weights(2, 1, (0, 1))
    assert bench.idle()


def test_weights_and_grants_sent_again_elicit_the_same_bytes_again() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    first = only(bench.compute_all(), UnitResult)
    assert only(bench.grant(1, (0, 1)), UnitResult) == first
    assert only(bench.weights(0, 1, (0, 1)), UnitResult) == first
    assert bench.idle()


def test_a_finished_unit_is_sent_again_only_for_exactly_its_range() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 3))
    bench.compute_all()
    assert bench.grant(1, (1, 2), of=(0, 3)) == []
    part = only(bench.compute_all(), UnitResult)
    assert part.payload == unit_result(bench.known, 1, 2, 0).payload
    assert bench.units() == {Unit(1, 1, 2, 0, UnitState.SENT)}, "one for each shard is kept"
    assert bench.grant(1, (0, 3)) == []
    again = only(bench.compute_all(), UnitResult)
    assert again.payload == unit_result(bench.known, 0, 3, 0).payload


def test_what_the_next_weights_acknowledge_is_forgotten() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    bench.compute_all()
    bench.weights(1, 1, (0, 1))
    assert bench.grant(1, (0, 1)) == []
    assert bench.begin().step == 1
    assert bench.units() == {Unit(1, 0, 1, 1, UnitState.COMPUTING)}


def test_a_grant_again_while_it_is_computed_changes_nothing() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    bench.finish(bench.begin())
    bench.grant(1, (0, 1))
    assert names(bench.compute_all()) == [(1, (0, 1), 0)]


def test_a_revoked_worker_sends_the_unit_in_hand_once_and_keeps_nothing_of_it() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    bench.grant(2, (3, 3))
    bench.finish(bench.begin())
    for lease in (1, 2):
        bench.hear(Revoke(**IN_RUN, lease=lease))
    assert names(bench.compute_all()) == [(1, (0, 1), 0)]
    assert bench.units() == set()
    assert bench.weights(1, 1, (0, 1)) == []
    assert bench.idle()


def test_an_older_lease_of_overlapping_shards_is_ignored() -> None:
    bench = Bench().at_work()
    bench.grant(5, (1, 2))
    bench.grant(4, (2, 3))
    assert names(bench.compute_all()) == [(5, (1, 2), 0)]
    bench.grant(3, (3, 4))
    assert names(bench.compute_all()) == [(3, (3, 4), 0)], "nothing of lease 5"


@pytest.mark.parametrize("shards", [(1, 2), (0, 1), (2, 4), (0, 4)])
def test_a_newer_lease_voids_the_older_ones_that_it_overlaps(shards: Range) -> None:
    bench = Bench().at_work()
    bench.grant(1, (1, 2))
    bench.compute_all()
    bench.grant(2, shards)
    assert names(bench.compute_all()) == [(2, shards, 0)]
    assert {unit.lease for unit in bench.units()} == {2}
    bench.weights(1, 1, (1, 2))
    assert bench.idle()


def test_a_lease_beside_it_stays() -> None:
    bench = Bench().at_work()
    bench.grant(1, (1, 2))
    bench.grant(2, (3, 4))
    assert names(bench.compute_all()) == [(1, (1, 2), 0), (2, (3, 4), 0)]


@pytest.mark.parametrize(
    "of", [{"term": TERM - 1}, {"run_id": "run-2"}, {"session": SESSION + 1}], ids=str
)
def test_another_sessions_messages_are_ignored(of: dict[str, Any]) -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1), **of)
    assert bench.idle()
    bench.grant(1, (0, 1))
    bench.compute_all()
    bench.hear(dataclasses.replace(Revoke(**IN_RUN, lease=1), **of))
    bench.weights(1, 1, (0, 1), **of)
    assert bench.idle()
    assert names(bench.grant(1, (0, 1))) == [(1, (0, 1), 0)], "neither revoked nor acknowledged"


def test_a_reset_drops_everything_and_connects_again() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 0))
    shard = bench.begin()
    reset = dataclasses.replace(Reset(**IN_RUN), term=TERM + 1)
    assert only(bench.hear(reset), Hello)
    assert bench.finish(shard) == []
    assert bench.phase() is ClientPhase.CONNECTING


@pytest.mark.parametrize("change", [{"term": TERM + 1}, {"session": SESSION + 1}], ids=str)
def test_a_new_term_or_session_is_a_new_beginning(change: dict[str, int]) -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 0))
    shard = bench.begin()
    assert only(bench.hear(bench.welcome(**change)), ComputeFingerprint)
    assert bench.finish(shard) == []
    if "term" in change:
        assert bench.hear(bench.welcome()) == []


def test_after_a_silent_server_returns_it_finds_the_worker_unchanged() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 0))
    first = only(bench.compute_all(), UnitResult)
    assert "the server at tcp://there has sent nothing for 4 s: connecting again" in said(
        bench.worker.handle(DeadlinePassed(), 4.0)
    )
    assert only(bench.worker.handle(DeadlinePassed(), 4.0), Hello)
    effects = bench.hear(bench.welcome(), 4.1)
    assert only(effects, Ready)
    assert only(effects, Log) == Log("connected to tcp://there")
    assert only(bench.grant(1, (0, 0)), UnitResult) == first
    assert said(bench.hear(bench.welcome(), 4.2)) == "", "it is said once"


def test_a_wait_that_ends_with_a_new_term_is_told_of_by_the_shell() -> None:
    bench = Bench().at_work()
    assert "connecting again" in said(bench.worker.handle(DeadlinePassed(), 4.0))
    assert said(bench.hear(bench.welcome(term=TERM + 1), 4.1)) == ""
    bench.worker.handle(FingerprintComputed("the-runs", {}, 0.01), 4.2)
    assert said(bench.hear(bench.welcome(term=TERM + 1), 4.3)) == ""


def test_it_reports_the_wait_and_gives_up_at_the_connect_timeout() -> None:
    bench = Bench(connect_timeout=10.0)
    text = "waiting for a server at tcp://there, for 8 s more"
    assert only(bench.worker.handle(DeadlinePassed(), 2.0), Log) == Log(text), "it may come first"
    finish = only(bench.worker.handle(DeadlinePassed(), 10.0), Finish)
    assert finish == Finish(3, "no server at tcp://there for 10 s (--connect-timeout): no answer")
    assert bench.worker.deadline() is None
    assert bench.worker.handle(DeadlinePassed(), 11.0) == []
    reason = only(
        Bench(connect_timeout=10.0).worker.handle(DeadlinePassed("it hides"), 10.0), Finish
    )
    assert reason == Finish(3, "no server at tcp://there for 10 s (--connect-timeout): it hides")


def test_a_heartbeat_lists_the_units() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 0))
    bench.grant(2, (1, 2))
    bench.finish(bench.begin())
    bench.finish(bench.begin())
    bench.begin()
    bench.grant(3, (3, 4))
    beat = only(bench.worker.handle(HeartbeatDue(), 1.0), Heartbeat)
    assert set(beat.units) == {
        Unit(1, 0, 0, 0, UnitState.SENT),
        Unit(2, 1, 2, 0, UnitState.COMPUTING),
        Unit(3, 3, 4, 0, UnitState.QUEUED),
    }
    assert beat.longest_piece == 0.2
    assert bench.worker.handle(HeartbeatDue(), 1.1) == []
    assert only(bench.worker.handle(HeartbeatDue(), 1.0 + SILENCE / 4), Heartbeat)


def test_a_heartbeat_echoes_the_highest_number_that_asked_for_a_unit() -> None:
    bench = Bench().at_work()
    assert bench.heard() == 0
    bench.grant(1, (0, 1), number=4)
    bench.grant(1, (0, 1), number=3)
    assert bench.heard() == 4
    bench.weights(1, 1, (0, 1), number=5)
    bench.grant(1, (0, 1), 0, number=6)
    assert bench.heard() == 6, "of an older step, too: it has come"
    bench.hear(Reset(**IN_RUN))
    bench.hear(bench.welcome())
    assert bench.heard() == 0


def test_it_leaves_in_good_order() -> None:
    bench = Bench().at_work()
    effects = bench.worker.handle(LeaveRequested(75, "stopped\nby SIGTERM"), 0.0)
    assert only(effects, Goodbye).reason == "stopped by SIGTERM"
    assert only(effects, Finish) == Finish(75, "stopped\nby SIGTERM")
    assert sent(Bench().worker.handle(LeaveRequested(0, "early"), 0.0), Goodbye) == []


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (Refused(reason="no"), 3),
        (Done(**IN_RUN, code=0, reason="through"), 0),
        (Done(**IN_RUN, code=75, reason="stopped"), 75),
        (Done(**IN_RUN, code=3, reason="disk full"), 75),
    ],
)
def test_the_server_ends_it(message: Refused | Done, code: int) -> None:
    bench = Bench().at_work()
    assert only(bench.hear(message), Finish).code == code
    assert bench.hear(Alive(**IN_RUN)) == []


def test_what_the_tables_do_not_list_is_an_error_of_whose_it_is() -> None:
    bench = Bench().at_work()
    bench.grant(1, (0, 1))
    shard = bench.begin()
    with pytest.raises(ProtocolError, match="computed a shard that is not in hand"):
        bench.finish(dataclasses.replace(shard, step=1))
    with pytest.raises(ProtocolError, match="FingerprintComputed to a client that is connected"):
        bench.worker.handle(FingerprintComputed("bits", {}, 0.0), 0.0)
    with pytest.raises(PeerError, match="Ready to a client that is connected"):
        bench.hear(Ready(**IN_RUN, fingerprint="x", libraries={}, longest_piece=0.0))


def test_a_status_is_not_for_workers() -> None:
    bench = Bench().at_work()
    with pytest.raises(PeerError):
        bench.hear(status())
