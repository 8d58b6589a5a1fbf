"""Stories of the server: who says what, and what it does about it."""

import dataclasses
import math
from typing import Any

import pytest

from manychar.protocol import membership
from manychar.protocol.codec import decode, encode
from manychar.protocol.effects import (
    Append,
    Compute,
    Effect,
    Finish,
    RecordMetrics,
    RememberBans,
    ResumeBefore,
    Save,
)
from manychar.protocol.events import (
    CheckpointWritten,
    DeadlinePassed,
    DiskWaited,
    Event,
    KeyRevoked,
    Malformed,
    NotValidated,
    PeerError,
    PeerLost,
    Received,
    StopRequested,
    ValidationFailed,
)
from manychar.protocol.fault_limiter import BLOCKED_FOR, FAULTS_ALLOWED
from manychar.protocol.lifecycle import RunPhase
from manychar.protocol.membership import PeerState
from manychar.protocol.messages import (
    Alive,
    Done,
    Goodbye,
    Grant,
    Heartbeat,
    KeyRole,
    Notice,
    Owner,
    Refused,
    Reset,
    Revoke,
    Status,
    Stop,
    Unban,
    Unbanned,
    Unit,
    UnitState,
    Weights,
    WeightsRequest,
    Welcome,
)
from manychar.protocol.outbox import COUNTS_KEPT
from tests.protocol.stage import RUN, TERM, Stage, hello, only, said, sent
from tests.simulation.network import flip


def finish(effects: list[Effect]) -> Finish:
    return only(effects, Finish)


# Coming and going.


def test_the_first_worker_is_granted_every_shard() -> None:
    stage = Stage(shards=3)
    assert only(stage.hello("ann"), Welcome).term == TERM
    grants = sent(stage.ready("ann"), Grant, "ann")
    assert [(grant.shard, grant.step) for grant in grants] == [(0, 0), (1, 0), (2, 0)]
    assert all(grant.fresh for grant in grants)


def test_a_worker_joins_in_mid_step() -> None:
    stage = Stage(shards=2)
    stage.join("ann")
    stage.deliver("ann", 0, 0)
    effects = stage.join("bob")
    assert sent(effects, Revoke, "ann") == [Revoke(run_id=RUN, term=TERM, lease=2)]
    (grant,) = sent(effects, Grant, "bob")
    assert (grant.shard, grant.step) == (1, 0)
    effects = stage.deliver("bob", 1, 0)
    assert stage.server.state.step == 1
    assert {units.version for units in sent(effects, Weights)} == {1}


def test_a_takeover_begins_at_the_open_step_with_the_hidden_state_of_the_server() -> None:
    stage = Stage(shards=2)
    stage.join("ann", "bob")
    stage.advance_to(4, "ann")
    effects = stage.server.handle(PeerLost(b"bob"), stage.now)
    (grant,) = sent(effects, Grant, "ann")
    assert (grant.shard, grant.step) == (1, 4)
    assert bytes(grant.hidden) == stage.known.hidden[4][1]
    assert bytes(grant.weights) == stage.known.weights[4]


def test_a_shard_whose_gradient_is_there_is_granted_with_the_next_step() -> None:
    stage = Stage(shards=2)
    stage.join("ann")
    stage.deliver("ann", 0, 0)
    effects = stage.join("bob")
    assert [(grant.shard, grant.step) for grant in sent(effects, Grant, "bob")] == [(1, 0)]
    assert not sent(stage.server.handle(PeerLost(b"ann"), stage.now), Grant, "bob")
    effects = stage.deliver("bob", 1, 0)
    (grant,) = sent(effects, Grant, "bob")
    assert (grant.shard, grant.step) == (0, 1)
    assert bytes(grant.hidden) == stage.known.hidden[1][0]
    assert [unit.shard for unit in only(effects, Weights).units] == [1]


def test_a_late_gradient_of_a_former_holder_counts() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    stage.wait(3.0)
    assert stage.member("ann").state is PeerState.SILENT
    stage.join("bob")
    effects = stage.deliver("ann", 0, 0)
    assert stage.server.state.step == 1
    assert "ann answers again" in said(effects)
    stage.deliver("bob", 0, 0)
    assert stage.server.counts["gradients_repeated"] == 1


def test_a_worker_that_leaves_hands_back_its_shards() -> None:
    stage = Stage(shards=2)
    stage.join("ann", "bob")
    effects = stage.tell("ann", Goodbye(run_id=RUN, term=TERM, reason="told to"))
    assert [grant.shard for grant in sent(effects, Grant, "bob")] == [0]
    assert "ann has left: told to" in said(effects)


def test_a_silent_worker_is_lost_within_the_lease_timeout() -> None:
    stage = Stage(shards=2, lease_timeout=2.0)
    stage.join("ann", "bob")
    effects = stage.wait(2.1, "bob")
    assert "the shards of ann are reassigned: it has sent nothing for 2.0 s" in said(effects)
    assert stage.shards_of("bob") == [0, 1]


def test_a_slow_worker_that_beats_is_not_lost() -> None:
    stage = Stage(shards=1)
    stage.join("ann", "bob")
    stage.wait(60.0, "ann", "bob")
    assert stage.shards_of("ann") == [0]


def test_what_a_worker_is_busy_with_is_not_asked_for_again() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    for _ in range(100):
        stage.heartbeat("ann", Unit(1, 0, 0, UnitState.COMPUTING))
        assert not sent(stage.wait(0.2), Grant)
    assert stage.server.counts["grants_resent"] == 0


def test_what_no_answer_comes_to_is_asked_for_again_with_growing_pauses() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    times = [round(stage.now) for _ in range(160) if sent(stage.wait(0.1, "ann"), Grant)]
    assert times == [1, 3, 7, 15]


def test_a_member_that_has_long_been_silent_is_removed() -> None:
    stage = Stage()
    stage.hello("olga", "observer")
    stage.join("ann")
    stage.heartbeat("ann", slowest=20.0)
    for now, members in (
        (59.9, {b"olga", b"ann"}),
        (60.0, {b"ann"}),
        (159.9, {b"ann"}),
        (160.0, set()),
    ):
        stage.server.handle(DeadlinePassed(), now)
        assert stage.server.membership.members.keys() == members


def test_a_namesake_takes_over_and_the_former_one_may_come_back() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    effects = stage.tell("ann2", dataclasses.replace(hello("ann"), instance="another"))
    assert "the shards of ann are reassigned: another worker named ann connected" in said(effects)
    effects = stage.heartbeat("ann")
    assert "ann answers again" in said(effects)


def test_more_workers_than_shards_stand_by_and_the_flag_is_named() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    effects = stage.join("bob")
    assert "bob is idle: this run has 1 shards (--shards) and 2 workers" in said(effects)
    assert not sent(effects, Grant)


# Who is not let in.


def test_an_unknown_peer_is_told_to_start_afresh() -> None:
    stage = Stage()
    for effects in (stage.heartbeat("ann"), stage.deliver("ann", 0, 0)):
        assert only(effects, Reset) == Reset(run_id=RUN, term=TERM)
    assert stage.server.counts["messages_from_stale_session"] == 2


def test_a_message_of_an_older_term_is_told_to_start_afresh() -> None:
    stage = Stage()
    stage.join("ann")
    effects = stage.deliver("ann", 0, 0, term=TERM - 1)
    assert only(effects, Reset).term == TERM
    assert stage.server.aggregation.is_missing(0)


def test_a_higher_term_ends_this_server() -> None:
    stage = Stage()
    stage.join("ann")
    lifecycle = finish(stage.deliver("ann", 0, 0, term=TERM + 1))
    assert lifecycle.code == 3
    assert f"(term {TERM + 1}) has taken this run over" in lifecycle.reason


def test_other_arithmetic_is_refused_with_both_descriptions() -> None:
    stage = Stage()
    stage.hello("ann")
    refused = only(stage.ready("ann", fingerprint="x", libraries={"blas": "MKL"}), Refused)
    assert "it has blas MKL" in refused.reason
    assert "the run has blas OpenBLAS Haswell, numpy 2.4.0" in refused.reason
    assert not stage.server.membership.members


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"wire": 99}, "it speaks wire version 99"),
        ({"role": "cook"}, "there is no role cook"),
        ({"name": "eve"}, "banned: it lied"),
    ],
)
def test_who_is_refused_at_the_door(changes: dict[str, Any], reason: str) -> None:
    stage = Stage(banned={"eve": "it lied"})
    refused = only(stage.tell("ann", dataclasses.replace(hello("ann"), **changes)), Refused)
    assert reason in refused.reason


def test_a_gradient_before_ready_is_passed_over_and_the_worker_welcomed_again() -> None:
    stage = Stage()
    stage.hello("ann")
    assert only(stage.deliver("ann", 0, 0), Welcome)
    assert stage.server.counts["messages_before_ready"] == 1


def test_what_the_table_does_not_list_is_the_fault_of_the_peer() -> None:
    stage = Stage()
    stage.join("ann")
    with pytest.raises(PeerError, match="Stop from a peer that is working"):
        stage.tell("ann", Stop(run_id=RUN, term=TERM))
    with pytest.raises(PeerError, match="Alive to a server"):
        stage.tell("ann", Alive(run_id=RUN, term=TERM))
    with pytest.raises(PeerError, match="a gradient of shard 9"):
        stage.tell("ann", dataclasses.replace(stage.gradient(0, 0), shard=9))


def test_malformed_messages_are_counted_and_shown_once_a_second() -> None:
    stage = Stage()
    stage.join("ann")
    lines = [said(stage.server.handle(Malformed(b"ann", "nonsense"), i / 4)) for i in range(6)]
    assert lines == [
        "ann: dropped a message: nonsense (1 in total)",
        *[""] * 3,
        "ann: dropped a message: nonsense (5 in total)",
        "",
    ]
    assert (
        stage.server.counts["messages_malformed"]
        == stage.server.counts["messages_malformed:ann"]
        == 6
    )


def test_the_counts_fit_into_a_status() -> None:
    stage = Stage()
    for i in range(300):
        stage.server.handle(Malformed(b"x%d" % i, "nonsense", owner(f"x{i}")), 0.0)
    assert stage.server.counts["messages_malformed"] == 300
    assert len(stage.server.counts) <= COUNTS_KEPT + 3
    report = dataclasses.replace(stage.server.status_report.figures(0.0), loss=1.0)
    assert decode(encode(report), stage.server.dimensions) == report
    assert report.counts["messages_malformed"] == 300


def test_who_keeps_at_it_is_blocked_for_a_while_and_its_shards_move() -> None:
    stage = Stage()
    stage.join("ann", "bob")
    for _ in range(FAULTS_ALLOWED):
        stage.server.handle(Malformed(b"ann", "nonsense"), 0.0)
    assert not stage.server.admission.is_blocked(b"ann", None, 0.0)
    effects = stage.server.handle(Malformed(b"ann", "nonsense"), 0.0)
    assert "ann is blocked for 30 s" in said(effects)
    assert "ann has left: too many invalid messages" in said(effects)
    assert sent(effects, Grant, "bob")
    assert stage.server.admission.is_blocked(b"ann", None, BLOCKED_FOR - 0.1)
    assert not stage.server.admission.is_blocked(b"bob", None, 0.0)
    assert not stage.server.admission.is_blocked(b"ann", None, BLOCKED_FOR)


# Keys.


def owner(name: str, role: KeyRole = KeyRole.WORKER) -> Owner:
    return Owner(name, role)


@pytest.mark.parametrize("name", ["gpu", "gpu-1", "gpu-12"])
def test_a_key_lets_its_owner_be_called_so(name: str) -> None:
    stage = Stage()
    effects = stage.server.handle(Received(hello(name), b"p", owner("gpu")), 0.0)
    assert only(effects, Welcome)


@pytest.mark.parametrize("name", ["ann", "gpu-", "gpu-x", "gpu1", "gpux-1", "gpu-1-1", "gp"])
def test_a_name_is_bound_to_its_key(name: str) -> None:
    stage = Stage()
    effects = stage.server.handle(Received(hello(name), b"p", owner("gpu")), 0.0)
    assert only(effects, Refused).reason == f"the key of gpu does not let it be called {name}"


@pytest.mark.parametrize(
    ("role", "key"),
    [("worker", KeyRole.OBSERVER), ("worker", KeyRole.OPERATOR), ("observer", KeyRole.WORKER)],
)
def test_a_role_is_bound_to_its_key(role: str, key: KeyRole) -> None:
    stage = Stage()
    effects = stage.server.handle(Received(hello("gpu", role), b"p", owner("gpu", key)), 0.0)
    assert f"is for {key.value}s, not for {role}s" in only(effects, Refused).reason


def test_an_observer_may_only_look_and_an_operator_stop() -> None:
    stage = Stage()
    stop = Stop(run_id=RUN, term=TERM)
    stage.server.handle(
        Received(hello("eve", "observer"), b"eve", owner("eve", KeyRole.OBSERVER)), 0.0
    )
    assert "cannot stop a run" in only(stage.tell("eve", stop), Refused).reason
    assert stage.server.lifecycle.phase is RunPhase.TRAINING
    stage.server.handle(
        Received(hello("op", "observer"), b"op", owner("op", KeyRole.OPERATOR)), 0.0
    )
    stage.tell("op", stop)
    assert stage.server.lifecycle.phase is not RunPhase.TRAINING


def test_a_revoked_key_s_message_is_dropped_and_its_shards_move() -> None:
    stage = Stage()
    stage.join("ann", "bob")
    effects = stage.server.handle(KeyRevoked(b"ann"), 0.0)
    assert only(effects, Refused).reason == "its key was revoked"
    assert sent(effects, Grant, "bob")
    assert stage.server.handle(KeyRevoked(b"ann"), 0.0) == []
    assert stage.server.counts["messages_from_revoked_key"] == 2


def test_who_is_banned_is_banned_by_its_key_too() -> None:
    stage = Stage()
    stage.server.handle(Received(hello("gpu-1"), b"p1", owner("gpu")), 0.0)
    stage.server.admission.ban(("gpu-1", "gpu"), "it computed wrongly", 0.0)
    for name in ("gpu", "gpu-1", "gpu-2"):
        effects = stage.server.handle(Received(hello(name), b"p2", owner("gpu")), 0.0)
        assert sent(effects, Refused, "p2")[0].reason == "banned: it computed wrongly"
    assert only(stage.server.handle(Received(hello("ann"), b"p3", owner("ann")), 0.0), Welcome)


# What counts.


def test_an_identical_repeat_is_counted_and_dropped() -> None:
    stage = Stage()
    stage.join("ann")
    stage.deliver("ann", 0, 0)
    assert stage.deliver("ann", 0, 0) == []
    assert stage.server.counts["gradients_repeated"] == 1


def test_a_repeat_that_is_too_old_is_counted_as_not_compared() -> None:
    stage = Stage()
    stage.join("ann")
    stage.advance_to(11, "ann")
    stage.deliver("ann", 0, 0, loss=0.0)
    assert stage.server.counts["gradients_not_compared"] == 1


def test_a_step_that_is_not_open_is_the_fault_of_the_peer() -> None:
    stage = Stage()
    stage.join("ann")
    with pytest.raises(PeerError, match="step 1, shard 0, which is not open yet"):
        stage.deliver("ann", 0, 1)


def test_a_gradient_from_another_state_is_dropped_and_its_lease_begun_anew() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    effects = stage.deliver("ann", 0, 0, hidden_digest=bytes(4))
    assert "ann computed step 0, shard 0 from another state: dropped" in said(effects)
    assert only(effects, Grant).lease == 2
    assert stage.server.counts["gradients_from_wrong_state"] == 1


def test_one_wrong_gradient_begins_its_lease_anew_once() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    for _ in range(2):
        stage.deliver("ann", 0, 0, hidden_digest=bytes(4), lease=1)
    assert stage.server.membership.leases[0].number == 2


def test_who_computes_from_another_state_again_and_again_is_banned() -> None:
    stage = Stage(shards=1)
    stage.join("ann", "bob")

    def wrong(step: int) -> list[Effect]:
        lease = stage.server.membership.leases[0].number
        return stage.deliver("ann", 0, step, hidden_digest=bytes(4), lease=lease)

    wrong(0)
    stage.deliver("ann", 0, 0)
    wrong(1)
    wrong(1)
    assert stage.shards_of("ann") == [0]
    effects = wrong(1)
    assert "ann is banned: it computed shard 0 from another state 3 times" in said(effects)
    assert only(effects, RememberBans).banned.keys() == {"ann"}
    assert stage.shards_of("bob") == [0]


def test_no_worker_may_be_silent_for_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "LONGEST_UNIT", 20.0)
    stage = Stage(shards=1)
    stage.join("ann", "bob")
    stage.heartbeat("ann", slowest=1e300)
    stage.wait(19.0, "bob")
    assert stage.shards_of("ann") == [0]
    stage.wait(2.0, "bob")
    assert stage.shards_of("bob") == [0]


def test_the_first_stop_is_the_one_that_counts() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    stage.server.handle(StopRequested(130, "Ctrl-C", 5.0), 0.0)
    stage.server.handle(StopRequested(75, "SIGTERM", 5.0), 0.0)
    assert stage.server.lifecycle.requested_stop == Finish(130, "Ctrl-C")


def test_a_holder_whose_step_another_took_is_granted_the_next_one() -> None:
    stage = Stage(shards=2)
    stage.join("ann")
    stage.join("bob")
    stage.deliver("bob", 0, 0)
    effects = stage.deliver("bob", 1, 0)
    assert [(grant.shard, grant.step) for grant in sent(effects, Grant, "ann")] == [(0, 1)]


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_unit() -> None:
    stage = Stage()
    stage.join("ann")
    lifecycle = finish(stage.deliver("ann", 1, 0, loss=math.nan))
    assert lifecycle.code == 3
    assert lifecycle.reason == ("ann sent a loss or gradient that is not finite: step 0, shard 1")


# Disputes.


def test_who_repeats_other_bytes_is_banned_if_the_server_finds_them_wrong() -> None:
    stage = Stage()
    stage.join("ann", "bob")
    right = stage.gradient(0, 0)
    stage.tell("ann", right)
    effects = stage.deliver("bob", 0, 0, gradient=flip(right.gradient))
    unit = only(effects, Compute)
    assert (unit.shard, unit.step, unit.fresh) == (0, 0, True)
    assert bytes(unit.weights) == stage.known.weights[0]
    assert "bob sent other bytes for step 0, shard 0 than ann did" in said(effects)
    effects = stage.server.handle(stage.truth(0, 0), stage.now)
    assert only(effects, Refused).reason == "banned: it computed step 0, shard 0 wrongly"
    assert stage.shards_of("ann") == [0, 1]
    assert only(stage.hello("bob"), Refused)


def test_a_run_resumes_before_a_wrong_gradient_that_was_applied() -> None:
    stage = Stage()
    stage.join("ann", "bob")
    right = stage.gradient(0, 3)
    stage.advance_to(3, "bob")
    stage.deliver("ann", 0, 3, loss=right.loss + 1)
    stage.deliver("bob", 1, 3)
    assert stage.server.state.step == 4
    stage.tell("bob", right)
    effects = stage.server.handle(stage.truth(0, 3), stage.now)
    assert only(effects, RememberBans).banned == {"ann": "it computed step 3, shard 0 wrongly"}
    assert only(effects, ResumeBefore).step == 4
    assert "no gradient of ann can be trusted: resuming before step 3" in said(effects)
    assert sent(effects, Reset, "bob")
    assert not sent(effects, Done)
    assert stage.server.lifecycle.phase is RunPhase.FINISHED
    assert stage.deliver("bob", 0, 4) == []


def test_a_run_resumes_before_everything_that_the_banned_worker_had_a_part_in() -> None:
    stage = Stage()
    stage.join("ann", "bob")
    stage.advance_to(2, "bob")
    stage.deliver("ann", 0, 2)  # nobody repeats this one, right or wrong
    stage.deliver("bob", 1, 2)
    right = stage.gradient(0, 3)
    stage.deliver("ann", 0, 3, loss=right.loss + 1)
    stage.tell("bob", right)
    effects = stage.server.handle(stage.truth(0, 3), stage.now)
    assert only(effects, ResumeBefore).step == 3


def test_who_repeats_wrongly_takes_with_it_what_else_it_had_a_part_in() -> None:
    stage = Stage()
    stage.join("ann", "bob")
    stage.advance_to(2, "bob")
    stage.deliver("ann", 0, 2)  # nobody repeats this one, right or wrong
    stage.deliver("bob", 1, 2)
    stage.deliver("bob", 0, 3)
    stage.deliver("ann", 0, 3, loss=1.0)
    effects = stage.server.handle(stage.truth(0, 3), stage.now)
    assert only(effects, RememberBans).banned == {"ann": "it computed step 3, shard 0 wrongly"}
    assert only(effects, ResumeBefore).step == 3


def test_who_is_banned_by_name_and_key_had_its_key_when_it_computed() -> None:
    stage = Stage(shards=1)
    stage.server.handle(Received(hello("ann-2"), b"ann-2", owner("ann")), 0.0)
    stage.ready("ann-2")
    stage.deliver("ann-2", 0, 0, loss=1.0)
    stage.tell("ann-2", Goodbye(run_id=RUN, term=TERM, reason="done"))
    stage.join("bob")
    stage.tell("bob", stage.gradient(0, 0))
    effects = stage.server.handle(stage.truth(0, 0), stage.now)
    assert only(effects, ResumeBefore).step == 1
    assert only(effects, RememberBans).banned.keys() == {"ann", "ann-2"}


def test_a_pause_of_the_machine_is_forgotten() -> None:
    stage = Stage()
    stage.join("ann")
    usual = stage.server.membership.limit(stage.member("ann"))
    stage.heartbeat("ann", slowest=600.0)
    assert stage.server.membership.limit(stage.member("ann")) > 600.0
    stage.heartbeat("ann", slowest=0.1)
    assert stage.server.membership.limit(stage.member("ann")) == usual


def test_an_observer_s_word_of_a_newer_server_is_not_enough() -> None:
    stage = Stage()
    stage.server.handle(
        Received(hello("eye", "observer"), b"eye", owner("eye", KeyRole.OBSERVER)), 0.0
    )
    beat = Heartbeat(run_id=RUN, term=TERM + 1, slowest=0.0, computing=0.0, units=())
    effects = stage.server.handle(Received(beat, b"eye", owner("eye", KeyRole.OBSERVER)), 0.0)
    assert only(effects, Reset)
    assert stage.server.lifecycle.phase is RunPhase.TRAINING


def test_who_waits_for_the_disk_says_so_to_observers_too() -> None:
    stage = Stage()
    stage.hello("olga", "observer")
    effects = stage.server.handle(DiskWaited(), stage.now)
    assert "step 0 waits for the disk: earlier checkpoints are being written" in said(effects)
    assert only(effects, Status).waiting_for.startswith("the disk")
    assert not stage.server.status_report.waits_for_disk


def test_the_end_waits_for_a_dispute() -> None:
    stage = Stage(steps=1)
    stage.join("ann", "bob")
    stage.deliver("ann", 0, 0)
    stage.deliver("bob", 0, 0, loss=1.0)
    stage.deliver("ann", 1, 0)
    assert stage.server.handle(CheckpointWritten(1), stage.now) == []
    end = finish(stage.server.handle(stage.truth(0, 0), stage.now))
    assert end == Finish(0, "finished at step 1")


# Steps and ends.


def test_a_step_is_appended_recorded_and_broadcast() -> None:
    stage = Stage(steps=2)
    stage.join("ann")
    effects = stage.advance_to(1, "ann")
    appended = only(effects, Append)
    assert (appended.step, bytes(appended.weights)) == (1, stage.known.weights[1])
    (weights,) = sent(effects, Weights, "ann")
    assert [(unit.shard, unit.step) for unit in weights.units] == [(0, 1), (1, 1)]
    effects = stage.advance_to(2, "ann")
    assert only(effects, RecordMetrics).status.step == 2
    assert only(effects, Save).state.step == 2
    assert not sent(effects, Grant)
    end = finish(stage.server.handle(CheckpointWritten(2), stage.now))
    assert end == Finish(0, "finished at step 2")


def test_a_run_that_is_through_ends_at_once() -> None:
    stage = Stage(step=4, steps=4)
    assert only(stage.started, Save).state.step == 4
    end = finish(stage.server.handle(CheckpointWritten(4), stage.now))
    assert end == Finish(0, "finished at step 4")


def test_stop_ends_the_step_and_saves() -> None:
    stage = Stage()
    stage.join("ann")
    stage.deliver("ann", 0, 0)
    assert stage.server.handle(StopRequested(75, "stopped by SIGTERM", 5.0), 0.0) == []
    effects = stage.deliver("ann", 1, 0)
    assert only(effects, Save).state.step == 1
    assert not sent(effects, Weights)
    effects = stage.server.handle(CheckpointWritten(1), stage.now)
    assert finish(effects) == Finish(75, "stopped by SIGTERM")
    assert sent(effects, Done, "ann")[0].code == 75


def test_stop_without_the_end_of_the_step_saves_when_the_time_is_up() -> None:
    stage = Stage()
    stage.join("ann")
    stage.server.handle(StopRequested(75, "stopped", 0.5), 0.0)
    assert only(stage.wait(0.6), Save).state.step == 0


def test_stop_without_workers_saves_at_once() -> None:
    stage = Stage()
    assert only(stage.server.handle(StopRequested(75, "stopped", 9.0), 0.0), Save).state.step == 0


def test_an_observer_can_stop_the_run() -> None:
    stage = Stage()
    effects = stage.hello("olga", "observer")
    assert only(effects, Status).step == 0
    assert only(effects, Welcome).vocabulary == stage.known.vocabulary.encode()
    stage.tell("olga", Stop(run_id=RUN, term=TERM))
    assert finish(stage.server.handle(CheckpointWritten(0), stage.now)) == Finish(
        75, "stopped by olga"
    )


def test_an_observer_gets_the_newest_weights_when_it_asks() -> None:
    stage = Stage()
    stage.join("ann")
    assert not sent(stage.hello("olga", "observer"), Weights)
    stage.advance_to(2, "ann")
    weights = only(stage.tell("olga", WeightsRequest(run_id=RUN, term=TERM)), Weights)
    assert (weights.version, weights.units) == (2, ())
    assert bytes(weights.weights) == stage.known.weights[2]
    with pytest.raises(PeerError, match="WeightsRequest from a peer that is working"):
        stage.tell("ann", WeightsRequest(run_id=RUN, term=TERM))


def test_an_end_has_a_reason() -> None:
    with pytest.raises(ValueError, match="no reason"):
        Finish(0, "")


def test_a_ban_is_lifted_and_remembered() -> None:
    stage = Stage(banned={"ann": "it computed step 3, shard 0 wrongly", "key-1": "the same"})
    assert only(stage.hello("ann"), Refused).reason.startswith("banned: it computed step 3")
    stage.hello("olga", "observer")
    effects = stage.tell("olga", Unban(run_id=RUN, term=TERM, name="ann"))
    assert only(effects, Unbanned).text == "ann is no longer banned; banned: key-1"
    assert only(effects, RememberBans).banned == {"key-1": "the same"}
    assert only(stage.hello("ann"), Welcome)
    effects = stage.tell("olga", Unban(run_id=RUN, term=TERM, name="ann"))
    assert only(effects, Unbanned).text == "ann is not banned; banned: key-1"
    assert not [effect for effect in effects if isinstance(effect, RememberBans)]


def test_only_an_operator_lifts_a_ban() -> None:
    stage = Stage(banned={"ann": "it computed wrongly"})
    unban = Unban(run_id=RUN, term=TERM, name="ann")
    for name, role in (("olga", KeyRole.OBSERVER), ("otto", KeyRole.OPERATOR)):
        key = owner(name, role)
        stage.server.handle(Received(hello(name, "observer"), name.encode(), key), 0.0)
        effects = stage.server.handle(Received(unban, name.encode(), key), 0.0)
        assert bool(sent(effects, Refused)) is (role is KeyRole.OBSERVER)
    assert not stage.server.admission.banned


def test_an_observer_hears_every_notice() -> None:
    stage = Stage()
    stage.hello("olga", "observer")
    effects = stage.join("ann")
    assert [notice.text for notice in sent(effects, Notice, "olga")] == ["ann has joined"]


def test_a_checkpoint_that_cannot_be_written_ends_the_run() -> None:
    stage = Stage()
    stage.join("ann")
    effects = stage.server.handle(CheckpointWritten(2, "no space left on device"), stage.now)
    assert finish(effects).code == 3
    assert finish(effects).reason.startswith(
        "the checkpoint of step 2 could not be written: no space left on device"
    )


@pytest.mark.parametrize(
    "later",
    [
        CheckpointWritten(1, "I/O error"),
        CheckpointWritten(0),
        ValidationFailed("it crashed"),
        NotValidated(0, "it is gone"),
        StopRequested(130, "stopped by Ctrl-C", 2.0),
        PeerLost(b"ann"),
        DiskWaited(),
    ],
)
def test_nothing_follows_the_end_of_a_run(later: Event) -> None:
    stage = Stage(validation_losses={}, unvalidated=(0,), checkpoint_every=1)
    stage.join("ann", "bob")
    failed = CheckpointWritten(2, "no space left on device")
    assert finish(stage.server.handle(failed, stage.now)).code == 3
    assert stage.server.handle(later, stage.now) == []
    assert stage.server.lifecycle.phase is RunPhase.FINISHED


def test_the_server_says_for_whom_it_waits() -> None:
    stage = Stage()
    assert "step 0 has waited 1 s for a worker to connect" in said(stage.wait(1.2))
    stage.join("ann")
    text = said(stage.wait(12.0, "ann"))
    assert "step 0 has waited 11 s for ann (shard 0), ann (shard 1)" in text


def test_the_server_says_that_it_waits_for_the_disk() -> None:
    stage = Stage()
    stage.server.handle(StopRequested(75, "stopped", 9.0), 0.0)
    words = "the disk: the checkpoint of step 0 is being written"
    assert f"step 0 has waited 1 s for {words}" in said(stage.wait(1.2))
    assert only(stage.hello("olga", "observer"), Status).waiting_for == words


def test_a_heartbeat_is_answered() -> None:
    stage = Stage()
    stage.join("ann")
    beat = Heartbeat(run_id=RUN, term=TERM, slowest=0.0, computing=0.0, units=())
    assert only(stage.tell("ann", beat), Alive) == Alive(run_id=RUN, term=TERM)


def test_who_asks_again_and_again_though_it_is_refused_is_blocked() -> None:
    stage = Stage()
    old = dataclasses.replace(hello("old"), wire=99)
    lines = [
        said(stage.tell("old", old))
        for _ in range(30)
        if not stage.server.admission.is_blocked(b"old", None, stage.now)
    ]
    assert len([line for line in lines if "old was refused" in line]) == 21
    assert stage.server.counts["clients_refused"] == 21


def test_refused_processes_do_not_block_the_healthy_workers_of_their_key() -> None:
    stage = Stage()
    gpu = owner("gpu")
    stage.server.handle(Received(hello("gpu-1"), b"healthy", gpu), stage.now)
    old = dataclasses.replace(hello("gpu-2"), wire=99)
    for i in range(2 * FAULTS_ALLOWED):
        stage.server.handle(Received(old, b"%d" % i, gpu), stage.now)
    assert not stage.server.admission.is_blocked(b"healthy", gpu, stage.now)
    for _ in range(FAULTS_ALLOWED):
        stage.server.handle(Received(old, b"0", gpu), stage.now)
    assert stage.server.admission.is_blocked(b"0", gpu, stage.now)
    assert not stage.server.admission.is_blocked(b"healthy", gpu, stage.now)
