"""Stories of the server: who says what, and what it does about it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from manychar.numerics.tree_reduction import Range
from manychar.protocol import membership
from manychar.protocol.codec import decode, encode
from manychar.protocol.counters import Counter
from manychar.protocol.effects import (
    Append,
    Compute,
    Effect,
    Finish,
    Level,
    Log,
    RecordMetrics,
    RememberBans,
    ResumeBefore,
    Save,
    Validate,
)
from manychar.protocol.events import (
    CheckpointWritten,
    DeadlinePassed,
    DiskWaited,
    Event,
    KeyRevoked,
    MailboxEmpty,
    Malformed,
    PeerError,
    PeerLost,
    Received,
    StopRequested,
    Validated,
    ValidationFailed,
)
from manychar.protocol.lifecycle import RunPhase
from manychar.protocol.member import OWN_PEER, PeerState
from manychar.protocol.messages import (
    PAGE_LENGTH,
    Alive,
    Done,
    Goodbye,
    Grant,
    Heartbeat,
    KeyRole,
    NewWeights,
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
from tests.protocol.stage import (
    IN_RUN,
    SESSION,
    TERM,
    Stage,
    flip,
    hello,
    only,
    said,
    sent,
    unit_result,
)


def finish(effects: list[Effect]) -> Finish:
    return only(effects, Finish)


def grants(effects: list[Effect], name: str) -> list[tuple[int, Range, Range, int]]:
    """Return the lease, its range, the shards and the step of the grants to a worker."""
    return [
        (each.lease, (each.lease_first, each.lease_last), (each.first, each.last), each.step)
        for each in sent(effects, Grant, name)
    ]


def news(effects: list[Effect], name: str) -> list[tuple[int, Range, int]]:
    """Return the lease, shards and step of the weights to a worker."""
    return [
        (each.lease, (each.first, each.last), each.step) for each in sent(effects, NewWeights, name)
    ]


# Coming and going.


def test_the_first_worker_is_granted_all_shards_in_one_range() -> None:
    stage = Stage(shards=3)
    assert only(stage.hello("ann"), Welcome).run_and_term == IN_RUN
    effects = stage.ready("ann")
    assert grants(effects, "ann") == [(1, (0, 2), (0, 2), 0)]
    grant = only(effects, Grant)
    assert grant.fresh
    assert bytes(grant.weights) == stage.known.weights[0]
    assert bytes(grant.hidden) == b"".join(stage.known.hidden[0])
    assert bytes(grant.ids) == stage.known.streams.ids_at(0, 2, 0).tobytes()


def test_who_joins_in_mid_step_gets_a_range_when_the_step_ends() -> None:
    stage = Stage(shards=4)
    stage.join("ann")
    effects = stage.join("bob")
    assert grants(effects, "bob") == [], "somebody holds every shard"
    effects = stage.deliver("ann", (0, 3))
    assert sent(effects, Revoke, "ann") == [Revoke(**IN_RUN, lease=1)]
    assert grants(effects, "ann") == [(2, (0, 1), (0, 1), 1)]
    assert grants(effects, "bob") == [(3, (2, 3), (2, 3), 1)]
    assert bytes(sent(effects, Grant, "bob")[0].hidden) == b"".join(stage.known.hidden[1][2:])
    assert stage.server.state.step == 1


def test_a_takeover_is_granted_at_once_beside_what_the_other_holds() -> None:
    stage = Stage(shards=5)
    stage.share("ann", "bob", "eve")
    assert [stage.ranges_of(name) for name in ("ann", "bob", "eve")] == [
        [(0, 1)],
        [(2, 3)],
        [(4, 4)],
    ]
    stage.deliver("ann", (0, 1))
    effects = stage.server.handle(PeerLost(b"eve"), stage.now)
    assert grants(effects, "ann") == [(stage.leases("ann")[1], (4, 4), (4, 4), 1)]
    assert not sent(effects, Revoke)
    (grant,) = sent(effects, Grant, "ann")
    assert bytes(grant.hidden) == stage.known.hidden[1][4]
    assert bytes(grant.weights) == stage.known.weights[1]
    stage.deliver("ann", 4)
    effects = stage.deliver("bob", (2, 3))
    assert stage.server.state.step == 2
    assert stage.ranges_of("ann") == [(0, 1)], "one range each, from here on"
    assert stage.ranges_of("bob") == [(2, 4)]


def test_a_lost_range_whose_shards_are_accepted_is_leased_again_with_the_next_step() -> None:
    stage = Stage(shards=4)
    stage.share("ann", "bob")
    stage.deliver("bob", (2, 3))
    assert not sent(stage.server.handle(PeerLost(b"bob"), stage.now), Grant)
    effects = stage.deliver("ann", (0, 1))
    assert [each[1:] for each in grants(effects, "ann")] == [((0, 3), (0, 3), 2)]
    assert not sent(effects, NewWeights)


def test_shards_that_nobody_held_are_leased_as_soon_as_somebody_is_here() -> None:
    stage = Stage(shards=4)
    stage.share("ann", "bob")
    stage.deliver("ann", (0, 1))
    for name in ("ann", "bob"):
        stage.server.handle(PeerLost(name.encode()), stage.now)
    effects = stage.join("eve")
    assert [each[1:] for each in grants(effects, "eve")] == [((2, 3), (2, 3), 1)]


def test_what_is_missing_in_the_midst_of_a_range_is_a_grant_for_each_run() -> None:
    stage = Stage(shards=5)
    stage.join("ann")
    for shard in (1, 3):
        stage.deliver("ann", shard)
    assert grants(stage.wait(1.1, "ann"), "ann") == [
        (1, (0, 4), (shard, shard), 0) for shard in (0, 2, 4)
    ]
    stage.deliver("ann", 2)
    assert grants(stage.wait(2.0, "ann"), "ann") == [(1, (0, 4), (i, i), 0) for i in (0, 4)]


def test_a_lost_worker_s_missing_shards_are_leased_run_by_run() -> None:
    stage = Stage(shards=8)
    stage.share("ann", "bob")
    stage.deliver("bob", 5)
    effects = stage.server.handle(PeerLost(b"bob"), stage.now)
    assert [each[1:] for each in grants(effects, "ann")] == [
        ((4, 4), (4, 4), 1),
        ((6, 7), (6, 7), 1),
    ]


def test_ranges_stay_where_nobody_comes_or_goes() -> None:
    stage = Stage(shards=4)
    stage.share("ann", "bob")
    for _ in range(3):
        stage.deliver("bob", (2, 3))
        effects = stage.deliver("ann", (0, 1))
        step = stage.server.state.step
        assert news(effects, "ann") == [(2, (0, 1), step)]
        assert news(effects, "bob") == [(3, (2, 3), step)]
        assert not sent(effects, Grant)
        assert not sent(effects, Revoke)


# Weights alone, or a grant (rule 3).


def test_weights_alone_are_for_who_computed_all_of_its_range_under_this_lease() -> None:
    stage = Stage(shards=4)
    stage.share("ann", "bob")
    stage.deliver("bob", (2, 3))
    stage.deliver("ann", 0)
    effects = stage.deliver("ann", 1)
    assert news(effects, "ann") == [(2, (0, 1), 2)], "in two parts"
    assert news(effects, "bob") == [(3, (2, 3), 2)]
    (weights,) = sent(effects, NewWeights, "bob")
    assert bytes(weights.weights) == stage.known.weights[2]
    assert bytes(weights.ids) == stage.known.streams.ids_at(2, 3, 2).tobytes()


@pytest.mark.parametrize(("name", "lease"), [("bob", 0), ("bob", 2), ("ann", 1)])
def test_a_holder_of_whose_range_one_shard_came_otherwise_is_granted_all_of_it(
    name: str, lease: int
) -> None:
    """From another worker, whatever lease it names, or under a former lease."""
    stage = Stage(shards=4)
    stage.share("ann", "bob")
    assert stage.leases("ann") == [2]
    stage.deliver(name, 1, lease=lease)
    stage.deliver("ann", (0, 1))
    effects = stage.deliver("bob", (2, 3))
    assert grants(effects, "ann") == [(2, (0, 1), (0, 1), 2)]
    assert news(effects, "ann") == []
    assert news(effects, "bob") == [(3, (2, 3), 2)]


def test_a_late_result_of_a_former_holder_counts() -> None:
    stage = Stage(shards=2)
    stage.join("ann")
    stage.wait(3.0)
    assert stage.member("ann").state is PeerState.SILENT
    stage.join("bob")
    effects = stage.deliver("ann", (0, 1), lease=1)
    assert stage.server.state.step == 1
    assert "ann answers again" in said(effects)
    stage.deliver("bob", (0, 1), 0)
    assert stage.server.counts["units_repeated"] == 1


def test_a_worker_that_leaves_hands_back_its_shards() -> None:
    stage = Stage(shards=4)
    stage.share("ann", "bob")
    effects = stage.tell("ann", Goodbye(**IN_RUN, reason="told to"))
    assert [each[1:] for each in grants(effects, "bob")] == [((0, 1), (0, 1), 1)]
    assert "ann has left: told to" in said(effects)


def test_a_silent_worker_is_lost_within_the_lease_timeout() -> None:
    stage = Stage(shards=2, lease_timeout=2.0)
    stage.share("ann", "bob")
    effects = stage.wait(2.1, "bob")
    assert "the shards of ann are reassigned: it has sent nothing for 2.0 s" in said(effects)
    assert stage.ranges_of("bob") == [(0, 0), (1, 1)]


def test_the_silence_of_a_worker_counts_from_its_first_range_on() -> None:
    stage = Stage(shards=1, lease_timeout=2.0)
    stage.join("ann", "bob")
    stage.wait(6.0, "ann")
    stage.server.handle(PeerLost(b"ann"), stage.now)
    assert stage.ranges_of("bob") == [(0, 0)]
    stage.wait(1.9)
    assert stage.ranges_of("bob") == [(0, 0)]
    assert "the shards of bob are reassigned" in said(stage.wait(0.2))


def test_a_repeated_hello_is_only_welcomed_again() -> None:
    stage = Stage(shards=1)
    stage.hello("ann")
    before = stage.member("ann")
    assert only(stage.hello("ann"), Welcome)
    assert stage.member("ann") is before


def test_a_slow_worker_that_beats_is_not_lost() -> None:
    stage = Stage(shards=1)
    stage.join("ann", "bob")
    stage.wait(60.0, "ann", "bob")
    assert stage.ranges_of("ann") == [(0, 0)]


def test_what_a_worker_is_busy_with_is_not_asked_for_again() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    for _ in range(100):
        stage.heartbeat("ann", Unit(1, 0, 0, 0, UnitState.COMPUTING))
        assert not sent(stage.wait(0.2), Grant)
    assert stage.server.counts["grants_resent"] == 0


def test_what_no_answer_comes_to_is_asked_for_again_with_growing_pauses() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    times = [round(stage.now) for _ in range(160) if sent(stage.wait(0.1, "ann"), Grant)]
    assert times == [1, 3, 7, 15]


def test_a_heartbeat_that_knows_of_a_grant_but_not_of_its_unit_brings_it_again() -> None:
    stage = Stage(shards=2)
    (grant,) = sent(stage.join("ann"), Grant)
    assert grant.number == 1
    assert not sent(stage.heartbeat("ann", heard=0), Grant), "it may be on its way"
    for state in (UnitState.QUEUED, UnitState.COMPUTING):
        unit = Unit(1, 0, 1, 0, state)
        assert not sent(stage.heartbeat("ann", unit, heard=1), Grant)
    (again,) = sent(stage.heartbeat("ann", heard=1), Grant)
    assert (again.number, again.lease, again.step) == (2, 1, 0)
    assert not sent(stage.heartbeat("ann", heard=1), Grant)
    assert stage.server.counts["grants_resent"] == 1
    (weights,) = sent(stage.deliver("ann", (0, 1)), NewWeights)
    assert weights.number == 3
    sent_unit = Unit(1, 0, 1, 1, UnitState.SENT)
    assert sent(stage.heartbeat("ann", sent_unit, heard=3), Grant), "its result was lost"


def test_what_is_asked_of_each_worker_is_numbered_by_itself() -> None:
    stage = Stage(shards=2)
    stage.share("ann", "bob")
    stage.deliver("ann", 0)
    effects = stage.deliver("bob", 1)
    numbers = [sent(effects, NewWeights, name)[0].number for name in ("ann", "bob")]
    assert numbers == [3, 2]


def test_the_next_unit_and_what_its_result_begins_with_are_made_while_workers_compute() -> None:
    stage = Stage(shards=2)
    stage.share("ann", "bob")
    stage.server.handle(MailboxEmpty(), stage.now)
    (lease,) = stage.server.membership.leases_of(b"ann")
    result = unit_result(stage.known, 0, 0, 1, lease=lease.number)
    (header, _), expected = encode(result), stage.server.expected_results
    (fields,) = (known for first, known in expected.items() if header[: len(first)] == first)
    assert fields == {name: value for name, value in vars(result).items() if name in fields}
    assert len(expected) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(stage.server.aggregation), "ids", None)  # they are here by now
        stage.deliver("ann", 0)
        effects = stage.deliver("bob", 1)
        for name, number in (("ann", 3), ("bob", 2)):
            (weights,) = sent(effects, NewWeights, name)
            assert (weights.number, weights.step) == (number, 2)
            decoded = decode([bytes(frame) for frame in encode(weights)], stage.server.dimensions)
            assert decoded == weights
    assert bytes(weights.ids) == stage.known.streams.ids_at(1, 1, 2).tobytes()


def test_a_unit_that_was_prepared_is_made_again_where_its_holder_was_asked_meanwhile() -> None:
    stage = Stage(shards=2)
    stage.share("ann", "bob")
    stage.server.handle(MailboxEmpty(), stage.now)
    (again,) = sent(stage.heartbeat("ann", heard=2), Grant)
    assert again.number == 3
    stage.deliver("ann", 0)
    (weights,) = sent(stage.deliver("bob", 1), NewWeights, "ann")
    assert weights.number == 4
    assert bytes(weights.ids) == stage.known.streams.ids_at(0, 0, 2).tobytes()


def test_a_worker_that_only_costs_gets_no_range_and_is_measured_by_a_duplicate() -> None:
    stage = Stage(shards=4)
    stage.share("ann", "bob")
    stage.deliver("ann", (0, 1), seconds=0.01)
    stage.deliver("bob", (2, 3), seconds=9.0)
    assert stage.ranges_of("bob") == [(2, 3)], "ranges are looked at once a second"
    stage.now += 1.0
    stage.deliver("ann", (0, 1), seconds=0.01)
    effects = stage.deliver("bob", (2, 3), seconds=9.0)
    assert "bob takes 9 s for a shard: it gets none, a step without it is shorter" in said(effects)
    assert stage.ranges_of("bob") == []
    effects = stage.wait(10.2, "ann", "bob")
    assert [each[1:3] for each in grants(effects, "bob")] == [((0, 3), (0, 3))]
    shown = {
        each.name: (each.state, each.shards)
        for each in stage.server.status_report.pages(stage.now)[0].workers
    }
    assert shown == {"ann": ("working", 4), "bob": ("slow", 0)}, "a copy is no range"
    stage.deliver("ann", (0, 3), seconds=0.01)
    assert stage.ranges_of("bob") == [], "a duplicate ends with the step"
    stage.deliver("bob", (0, 3), stage.server.state.step - 1, seconds=0.01)
    assert stage.server.counts["units_repeated"] == 1


def test_a_member_that_has_long_been_silent_is_removed() -> None:
    stage = Stage()
    stage.hello("olga", "observer")
    stage.join("ann")
    stage.heartbeat("ann", longest_piece=20.0)
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
    (line,) = [each for each in effects if isinstance(each, Log)]
    assert line.level is Level.INFO, "the former one may be dead"
    effects = stage.heartbeat("ann")
    assert said(effects) == "ann answers again"


@pytest.mark.parametrize("both", [False, True])
def test_a_warning_says_that_two_live_workers_have_one_name(*, both: bool) -> None:
    """Also where both connect at once, and neither has shards yet."""
    stage = Stage()

    def connect(peer: str, host: str) -> None:
        first = dataclasses.replace(hello("ann"), instance=peer, machine={"host": host})
        stage.tell(peer, first)

    connect("ann", "here")
    if not both:
        stage.ready("ann")
    connect("second", "there")
    stage.ready("second")
    stage.now += 0.9
    assert "is here" not in said(stage.heartbeat("ann")), "it may have sent this before it died"
    assert "is here" not in said(stage.wait(1.0, "second")), "it may be dead"
    warnings = [
        each.text
        for each in stage.heartbeat("ann")
        if isinstance(each, Log) and each.level is Level.WARNING
    ]
    assert warnings == [
        "another worker named ann is here: on here and there; give each its own --name, or key"
    ]
    assert "is here" not in said(stage.wait(9.0, "ann", "second")), "it is said once"


def test_a_namesake_that_has_left_is_not_warned_of() -> None:
    stage = Stage()
    stage.join("ann")
    stage.tell("second", dataclasses.replace(hello("ann"), instance="another"))
    stage.server.handle(PeerLost(b"second"), stage.now)
    assert "is here" not in said(stage.wait(3.0, "ann"))


def test_more_workers_than_shards_stand_by_and_the_flag_is_named() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    effects = stage.join("bob")
    assert "bob is idle: this run has 1 shard (--shards) and 2 workers" in said(effects)
    assert "cid is idle" not in said(stage.join("cid")), "a hint is given once"
    assert not sent(effects, Grant)


def test_the_workers_of_an_idle_relay_are_counted_and_not_the_relay() -> None:
    stage = Stage(shards=1)
    stage.join("ann", "rack")
    stage.member("rack").is_relay, stage.member("rack").workers = True, 3
    assert stage.server.status_report.figures(stage.now).idle_workers == 3
    hint = Stage(shards=1)
    hint.join("rack")
    hint.member("rack").is_relay, hint.member("rack").workers = True, 3
    assert "1 shard (--shards) and 4 workers" in said(hint.join("ann"))


# Who is not let in.


def test_an_unknown_peer_is_told_to_start_afresh() -> None:
    stage = Stage()
    for effects in (stage.heartbeat("ann"), stage.deliver("ann", 0)):
        assert only(effects, Reset) == Reset(**IN_RUN)
    assert stage.server.counts["messages_from_stale_session"] == 2


@pytest.mark.parametrize("of", [{"term": TERM - 1}, {"session": SESSION + 1}], ids=str)
def test_a_message_of_another_session_is_told_to_start_afresh(of: dict[str, int]) -> None:
    stage = Stage()
    stage.join("ann")
    effects = stage.deliver("ann", (0, 1), **of)
    assert only(effects, Reset) == Reset(**IN_RUN)
    assert stage.server.aggregation.missing() == [0, 1]
    assert stage.server.counts["messages_from_stale_session"] == 1


def test_a_higher_term_ends_this_server() -> None:
    stage = Stage()
    stage.join("ann")
    lifecycle = finish(stage.deliver("ann", 0, 0, term=TERM + 1))
    assert lifecycle.code == 3
    seen = f"a worker has seen term {TERM + 1} of this run, and this server has term {TERM}"
    assert lifecycle.reason.startswith(seen)
    assert not lifecycle.resumable, "resumed, it would end in the same way"


def test_other_arithmetic_is_refused_with_both_descriptions() -> None:
    stage = Stage()
    stage.hello("ann")
    refused = only(stage.ready("ann", fingerprint="x", libraries={"blas": "MKL"}), Refused)
    assert "it has blas MKL" in refused.reason
    assert "the run has blas OpenBLAS Haswell, numpy 2.4.0" in refused.reason
    assert stage.server.counts[Counter.CLIENTS_REFUSED] == 1
    assert not stage.server.membership.members


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"wire": 99}, "its wire version is 99"),
        ({"role": "cook"}, "there is no role cook"),
        ({"name": "eve"}, "banned: it lied"),
        ({"name": "server"}, "the name server is that of the server's own share"),
    ],
)
def test_who_is_refused_at_the_door(changes: dict[str, Any], reason: str) -> None:
    stage = Stage(banned={"eve": "it lied"})
    refused = only(stage.tell("ann", dataclasses.replace(hello("ann"), **changes)), Refused)
    assert reason in refused.reason
    assert stage.server.counts[Counter.CLIENTS_REFUSED] == 1


def test_a_result_before_ready_is_passed_over_and_the_worker_welcomed_again() -> None:
    stage = Stage()
    stage.hello("ann")
    assert only(stage.deliver("ann", 0), Welcome)
    assert stage.server.counts["messages_before_ready"] == 1


def test_what_the_table_does_not_list_is_the_fault_of_the_peer() -> None:
    stage = Stage()
    stage.join("ann")
    with pytest.raises(PeerError, match="Stop from a peer that is working"):
        stage.tell("ann", Stop(**IN_RUN))
    with pytest.raises(PeerError, match="Alive to a server"):
        stage.tell("ann", Alive(**IN_RUN))


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
    assert stage.server.counts["messages_malformed"] == 6
    assert stage.server.status_report.pages(2.0)[0].workers[0].dropped == 6


def test_what_a_relay_shows_fits_into_a_status() -> None:
    stage = Stage()
    stage.join("ann")
    member = stage.server.membership.members[b"ann"]
    member.is_relay = True
    figures = stage.server.status_report.figures(0.0)
    long = "ä" * 500
    worker = stage.server.status_report.pages(0.0)[0].workers[0]._replace(host=long, relay=long)
    counts = {f"{i:x<200}": 1 for i in range(10)} | dict.fromkeys(Counter, 2**53)
    for first in range(0, 3 * PAGE_LENGTH, 3):
        page = dataclasses.replace(figures, first=first, workers=(worker,) * 3, counts=counts)
        stage.server.status_report.note_below(member, page, 0.0)
    pages = stage.server.status_report.pages(0.0)
    assert len(pages) == 4
    for shown in pages:
        decode(encode(shown), stage.server.dimensions)
        assert shown.counts == dict.fromkeys(Counter, 2**53)


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
    expected = f"the key of gpu does not let it be called {name}: leave out --name, or"
    assert only(effects, Refused).reason.startswith(expected)


@pytest.mark.parametrize(
    ("role", "key"),
    [("worker", KeyRole.OBSERVER), ("worker", KeyRole.OPERATOR), ("observer", KeyRole.WORKER)],
)
def test_a_role_is_bound_to_its_key(role: str, key: KeyRole) -> None:
    stage = Stage()
    effects = stage.server.handle(Received(hello("gpu", role), b"p", owner("gpu", key)), 0.0)
    reason = only(effects, Refused).reason
    assert f"is for {key.value}s, not for {role}s" in reason
    assert f": `manychar keys add KEYS NAME --role {role}` makes another" in reason
    assert ("`--role operator`: to stop a run" in reason) == (role == "observer")


def test_an_observer_may_only_look_and_an_operator_stop() -> None:
    stage = Stage()
    stop = Stop(**IN_RUN)
    stage.server.handle(
        Received(hello("eve", "observer"), b"eve", owner("eve", KeyRole.OBSERVER)), 0.0
    )
    reason = only(stage.tell("eve", stop), Refused).reason
    assert "cannot stop a run: `manychar keys add KEYS NAME --role operator` makes" in reason
    assert stage.server.lifecycle.phase is RunPhase.TRAINING
    stage.server.handle(
        Received(hello("op", "observer"), b"op", owner("op", KeyRole.OPERATOR)), 0.0
    )
    stage.tell("op", stop)
    assert stage.server.lifecycle.phase is not RunPhase.TRAINING


def test_a_revoked_key_s_message_is_dropped_and_its_shards_move() -> None:
    stage = Stage()
    stage.share("ann", "bob")
    effects = stage.server.handle(KeyRevoked(b"ann"), 0.0)
    assert only(effects, Refused).reason == "its key was revoked; manychar keys add makes another"
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
    stage.deliver("ann", 0)
    assert stage.deliver("ann", 0) == []
    assert stage.server.counts["units_repeated"] == 1


def test_a_repeat_with_another_cut_is_counted_as_not_compared() -> None:
    stage = Stage(shards=4)
    stage.join("ann")
    stage.deliver("ann", (0, 1))
    assert stage.deliver("ann", 1) == []
    assert stage.server.counts["units_not_compared"] == 1
    stage.deliver("ann", (1, 3))
    assert stage.server.state.step == 1, "an overlap is taken for what is missing of it"


def test_a_repeat_that_is_too_old_is_counted_as_not_compared() -> None:
    stage = Stage()
    stage.join("ann")
    stage.advance_to(11, "ann")
    stage.deliver("ann", 0, 0, losses=[0.0])
    assert stage.server.counts["units_not_compared"] == 1


def test_a_step_that_is_not_open_is_the_fault_of_the_peer() -> None:
    stage = Stage()
    stage.join("ann")
    with pytest.raises(PeerError, match="step 1, shards 0 … 1, which is not open yet"):
        stage.deliver("ann", (0, 1), 1)


def test_a_result_from_another_state_is_dropped_and_its_lease_renewed() -> None:
    stage = Stage(shards=2)
    stage.join("ann")
    effects = stage.deliver("ann", (0, 1), digests=[bytes(4)] * 2)
    assert "ann computed step 0, shards 0 … 1 from another state: dropped" in said(effects)
    assert grants(effects, "ann") == [(2, (0, 1), (0, 1), 0)]
    assert stage.server.counts["units_from_wrong_state"] == 1


def test_one_wrong_result_renews_its_lease_once() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    for _ in range(2):
        stage.deliver("ann", 0, weights_digest=bytes(4), lease=1)
    assert stage.leases("ann") == [2]


def test_a_right_repeat_ends_the_row_of_wrong_results() -> None:
    stage = Stage(shards=2)
    stage.share("ann", "bob")
    for _ in range(3):
        stage.deliver("ann", 0, weights_digest=bytes(4))
        stage.deliver("ann", 0)
        stage.deliver("ann", 0, weights_digest=bytes(4))
        stage.deliver("ann", 0)
    assert not stage.server.admission.banned


def test_a_result_from_another_state_under_the_lease_of_another_renews_nothing() -> None:
    stage = Stage(shards=2)
    stage.share("ann", "bob")
    before = stage.leases("ann")
    assert not sent(stage.deliver("bob", 0, digests=[bytes(4)], lease=before[0]), Grant)
    assert stage.leases("ann") == before


def test_who_computes_from_another_state_again_and_again_is_banned() -> None:
    stage = Stage(shards=1)
    stage.join("ann", "bob")

    def wrong(step: int) -> list[Effect]:
        return stage.deliver("ann", 0, step, digests=[bytes(4)])

    wrong(0)
    stage.deliver("ann", 0)
    wrong(1)
    wrong(1)
    assert stage.ranges_of("ann") == [(0, 0)]
    effects = wrong(1)
    assert "ann is banned: it computed shard 0 from another state 3 times" in said(effects)
    assert only(effects, RememberBans).banned.keys() == {"ann"}
    assert stage.ranges_of("bob") == [(0, 0)]


def test_no_worker_may_be_silent_for_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "LONGEST_UNIT", 20.0)
    stage = Stage(shards=1)
    stage.join("ann", "bob")
    stage.heartbeat("ann", longest_piece=1e300)
    stage.wait(19.0, "bob")
    assert stage.ranges_of("ann") == [(0, 0)]
    stage.wait(2.0, "bob")
    assert stage.ranges_of("bob") == [(0, 0)]


def test_the_first_stop_is_the_one_that_counts() -> None:
    stage = Stage(shards=1)
    stage.join("ann")
    stage.server.handle(StopRequested(130, "Ctrl-C", 5.0), 0.0)
    stage.server.handle(StopRequested(75, "SIGTERM", 5.0), 0.0)
    assert stage.server.lifecycle.requested_stop == Finish(130, "Ctrl-C")


# Results that are not finite.

NEW_RUN = "start a new run with a --learning-rate below 0.1, or a --warmup above 100"


def with_nan(frame: Any) -> bytes:
    array = np.frombuffer(frame, np.float32).copy()
    array[3] = np.nan
    return array.tobytes()


def test_a_worker_whose_loss_is_not_finite_where_the_server_s_is_is_banned() -> None:
    stage = Stage()
    stage.share("ann", "bob")
    effects = stage.deliver("ann", 0, losses=[math.nan])
    assert "what ann sent for step 1, shard 0 is not finite: computed again" in said(effects)
    stage.deliver("bob", 1)
    stage.deliver("bob", 0)
    assert stage.server.state.step == 1, "nothing is applied before that is settled"
    effects = stage.compute(effects)
    assert only(effects, RememberBans).banned == {"ann": "it computed step 1, shard 0 wrongly"}
    assert only(effects, ResumeBefore).step == 1, "ann had a part in step 0"


def test_who_is_banned_with_nothing_accepted_costs_nothing() -> None:
    stage = Stage()
    stage.join("ann", "eve")
    effects = stage.compute(stage.deliver("eve", (0, 1), losses=[0.5, math.inf]))
    assert only(effects, RememberBans).banned.keys() == {"eve"}
    assert stage.server.lifecycle.phase is RunPhase.TRAINING
    stage.deliver("ann", (0, 1))
    assert stage.server.state.step == 1


def test_a_worker_whose_sum_is_not_finite_is_found_before_the_step_is_applied() -> None:
    stage = Stage(shards=4, step=2)
    stage.join("bob")
    sums = unit_result(stage.known, 0, 1, 2).payload.sums
    stage.join("eve")
    stage.deliver("eve", (0, 1), sums=[with_nan(sums[0])])
    effects = stage.deliver("bob", (2, 3))
    assert stage.server.state.step == 2
    assert [(unit.shard, unit.step) for unit in effects if isinstance(unit, Compute)] == [
        (0, 2),
        (1, 2),
    ]
    effects = stage.compute(effects)
    assert only(effects, RememberBans).banned == {"eve": "it computed step 2, shards 0 … 1 wrongly"}
    assert only(effects, ResumeBefore).step == 3, "from the state of step 2, which is right"


@pytest.mark.parametrize("part", ["losses", "sums"])
def test_what_is_not_finite_for_the_server_too_ends_the_run(part: str) -> None:
    stage = Stage()
    stage.join("ann")
    piece = stage.known.pieces[1, 0]
    changes: dict[str, Any] = {"losses": [math.nan]}
    own = dataclasses.replace(stage.truth(1, 0), loss=math.nan)
    if part == "sums":
        broken = with_nan(piece.gradient)
        changes = {"sums": [broken]}
        own = dataclasses.replace(stage.truth(1, 0), gradient=np.frombuffer(broken, np.float32))
    effects = stage.deliver("ann", 1, **changes)
    effects += stage.deliver("ann", 0)
    assert only(effects, Compute).shard == 1
    end = finish(stage.server.handle(own, stage.now))
    reason = "a loss, gradient or hidden state is not finite: step 0, shard 1"
    assert end == Finish(3, f"{reason}: {NEW_RUN}", resumable=False)


def test_a_sum_that_overflows_ends_the_run_and_names_nobody() -> None:
    stage = Stage(shards=4)
    stage.join("ann")
    for shards in ((0, 1), (2, 3)):
        sums = unit_result(stage.known, *shards, 0).payload.sums
        largest = np.full_like(np.frombuffer(sums[0], np.float32), 3e38).tobytes()
        effects = stage.deliver("ann", shards, sums=[largest])
    end = finish(effects)
    reason = "the sum of the gradients of step 0 is not finite"
    assert end == Finish(3, f"{reason}: {NEW_RUN}", resumable=False)
    assert not stage.server.admission.banned


# Results that differ.


def test_who_repeats_other_bytes_is_banned_if_the_server_finds_them_wrong() -> None:
    stage = Stage()
    stage.join("ann")
    stage.join("bob")
    stage.deliver("ann", 0)
    effects = stage.deliver("bob", 0, sums=[flip(stage.known.pieces[0, 0].gradient)])
    unit = only(effects, Compute)
    assert (unit.shard, unit.step, unit.fresh) == (0, 0, True)
    assert bytes(unit.weights) == stage.known.weights[0]
    assert "what bob sent for step 0, shard 0 differs: computed again" in said(effects)
    assert stage.server.counts["units_conflicting"] == 1
    effects = stage.compute(effects)
    assert only(effects, Refused).reason == "banned: it computed step 0, shard 0 wrongly"
    assert stage.ranges_of("ann") == [(0, 1)]
    assert only(stage.hello("bob"), Refused)


@pytest.mark.parametrize("first", ["own", "bob"])
def test_a_difference_to_the_server_s_own_share_ends_the_run_and_names_this_machine(
    first: str,
) -> None:
    stage = Stage()
    own = OWN_PEER.decode()
    stage.tell(own, hello("server"))
    stage.ready(own)
    stage.join("bob")
    names = [own, "bob"] if first == "own" else ["bob", own]
    stage.deliver(names[0], 0)
    end = finish(stage.compute(stage.deliver(names[1], 0, losses=[1.0])))
    assert end.code == 3
    others = end.reason.removeprefix("this machine and ").partition(" computed ")[0]
    assert others in ("bob", "server")
    assert "computed step 0, shard 0 differently" in end.reason
    assert not stage.server.admission.banned


def test_a_difference_in_a_shard_that_the_server_did_not_compute_is_the_workers_own() -> None:
    stage = Stage()
    own = OWN_PEER.decode()
    stage.tell(own, hello("server"))
    stage.ready(own)
    stage.join("ann", "bob")
    stage.deliver(own, 0)
    stage.deliver("ann", 1)
    losses = unit_result(stage.known, 0, 1, 0).payload.losses
    effects = stage.compute(stage.deliver("bob", (0, 1), 0, losses=[losses[0], 1.0]))
    assert only(effects, RememberBans).banned == {"bob": "it computed step 0, shards 0 … 1 wrongly"}


def test_a_result_of_the_server_that_is_not_finite_only_once_ends_the_run() -> None:
    stage = Stage()
    own = OWN_PEER.decode()
    stage.tell(own, hello("server"))
    stage.ready(own)
    end = finish(stage.compute(stage.deliver(own, 0, losses=[math.inf])))
    assert end.code == 3
    assert "this machine and itself computed step 0, shard 0 differently" in end.reason


def test_a_wrong_range_is_computed_again_shard_by_shard() -> None:
    stage = Stage(shards=4)
    stage.join("ann", "bob")
    stage.deliver("ann", (0, 2))
    sums = unit_result(stage.known, 0, 2, 0).payload.sums
    effects = stage.deliver("bob", (0, 2), sums=[flip(sums[0]), sums[1]])
    shards = [effect for effect in effects if isinstance(effect, Compute)]
    assert [unit.shard for unit in shards] == [0, 1, 2]
    assert stage.compute(shards[:2]) == []
    effects = stage.compute(shards[2:])
    assert only(effects, RememberBans).banned == {"bob": "it computed step 0, shards 0 … 2 wrongly"}


def test_a_wrong_loss_under_a_right_sum_is_the_first_sender_s() -> None:
    """A shard's loss and hidden state are its own sender's, a sum of several that of its node."""
    stage = Stage(shards=4, step=1)
    stage.join("bob")
    stage.join("eve")
    piece = stage.known.pieces[1, 1]
    stage.deliver("eve", 1, losses=[piece.loss + 1])
    effects = stage.deliver("bob", (0, 3))
    effects = stage.compute(effects)
    assert only(effects, RememberBans).banned == {"eve": "it computed step 1, shards 0 … 3 wrongly"}
    assert only(effects, ResumeBefore).step == 2


def test_a_run_resumes_before_a_wrong_result_that_was_applied() -> None:
    stage = Stage()
    stage.join("ann", "bob")
    stage.advance_to(3, "bob")
    stage.deliver("ann", 0, losses=[stage.known.pieces[0, 3].loss + 1])
    stage.deliver("bob", 1)
    assert stage.server.state.step == 4
    effects = stage.compute(stage.deliver("bob", 0, 3))
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
    stage.deliver("ann", 0)  # nobody repeats this one, right or wrong
    stage.deliver("bob", 1)
    stage.deliver("ann", 0, losses=[stage.known.pieces[0, 3].loss + 1])
    effects = stage.compute(stage.deliver("bob", 0))
    assert only(effects, ResumeBefore).step == 3


def test_who_repeats_wrongly_takes_with_it_what_else_it_had_a_part_in() -> None:
    stage = Stage()
    stage.join("ann", "bob")
    stage.advance_to(2, "bob")
    stage.deliver("ann", 0)  # nobody repeats this one, right or wrong
    stage.deliver("bob", 1)
    stage.deliver("bob", 0)
    effects = stage.compute(stage.deliver("ann", 0, losses=[1.0]))
    assert only(effects, RememberBans).banned == {"ann": "it computed step 3, shard 0 wrongly"}
    assert only(effects, ResumeBefore).step == 3


def test_who_is_banned_by_name_and_key_had_its_key_when_it_computed() -> None:
    stage = Stage(shards=1)
    stage.server.handle(Received(hello("ann-2"), b"ann-2", owner("ann")), 0.0)
    stage.ready("ann-2")
    stage.deliver("ann-2", 0, losses=[1.0])
    stage.tell("ann-2", Goodbye(**IN_RUN, reason="done"))
    stage.join("bob")
    effects = stage.compute(stage.deliver("bob", 0, 0))
    assert only(effects, ResumeBefore).step == 1
    assert only(effects, RememberBans).banned.keys() == {"ann", "ann-2"}


def test_a_pause_of_the_machine_is_forgotten() -> None:
    stage = Stage()
    stage.join("ann")
    usual = stage.server.membership.limit(stage.member("ann"))
    stage.heartbeat("ann", longest_piece=600.0)
    assert stage.server.membership.limit(stage.member("ann")) > 600.0
    stage.heartbeat("ann", longest_piece=0.1)
    assert stage.server.membership.limit(stage.member("ann")) == usual


def test_an_observer_s_word_of_a_newer_server_is_not_enough() -> None:
    stage = Stage()
    stage.server.handle(
        Received(hello("eye", "observer"), b"eye", owner("eye", KeyRole.OBSERVER)), 0.0
    )
    beat = Heartbeat(**IN_RUN | {"term": TERM + 1}, longest_piece=0.0, heard=0, units=())
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


def test_the_end_waits_for_a_conflict() -> None:
    stage = Stage(steps=1)
    stage.join("ann", "bob")
    stage.deliver("ann", 0)
    conflict = stage.deliver("bob", 0, losses=[1.0])
    stage.deliver("ann", 1)
    assert stage.server.handle(CheckpointWritten(1), stage.now) == []
    end = finish(stage.compute(conflict))
    assert end == Finish(0, "finished at step 1")


# Steps and ends.


def test_a_step_is_appended_recorded_and_broadcast() -> None:
    stage = Stage(steps=2)
    stage.join("ann")
    effects = stage.advance_to(1, "ann")
    appended = only(effects, Append)
    assert (appended.step, appended.loss) == (1, stage.server.aggregation.loss)
    assert news(effects, "ann") == [(1, (0, 1), 1)]
    kinds = [type(getattr(effect, "message", effect)) for effect in effects]
    assert kinds.index(NewWeights) < kinds.index(Append), "workers wait for the weights"
    effects = stage.advance_to(2, "ann")
    assert only(effects, RecordMetrics).status.step == 2
    assert only(effects, Save).state.step == 2
    assert not sent(effects, Grant)
    end = finish(stage.server.handle(CheckpointWritten(2), stage.now))
    assert end == Finish(0, "finished at step 2")


def saves(effects: Sequence[Effect]) -> list[tuple[int, bool]]:
    return [(each.state.step, each.for_recovery) for each in effects if isinstance(each, Save)]


def test_a_checkpoint_for_recovery_is_written_by_time_since_the_last_of_any_kind() -> None:
    stage = Stage(steps=0, checkpoint_every=5, checkpoint_minutes=0.5, validation_losses={})
    stage.join("ann")
    assert not saves(stage.advance_to(2, "ann"))
    stage.now = 30.0
    assert saves(stage.advance_to(3, "ann")) == [(3, True)]
    assert not saves(stage.advance_to(4, "ann")), "that of step 3 is not written yet"
    effects = stage.server.handle(CheckpointWritten(3, for_recovery=True), stage.now)
    assert not [each for each in effects if isinstance(each, Validate)]
    assert stage.server.status_report.figures(stage.now).checkpoint == 3
    stage.now = 50.0
    assert saves(stage.advance_to(5, "ann")) == [(5, False)]
    stage.now = 79.0
    assert not saves(stage.advance_to(6, "ann"))
    stage.now = 80.0
    assert saves(stage.advance_to(7, "ann")) == [(7, True)]


def test_a_run_does_not_end_with_a_checkpoint_for_recovery() -> None:
    stage = Stage(checkpoint_minutes=0.5)
    stage.join("ann")
    stage.now = 30.0
    assert saves(stage.advance_to(1, "ann")) == [(1, True)]
    stage.server.handle(StopRequested(75, "stopped", stage.now), stage.now)
    assert saves(stage.wait(0.2)) == [(1, False)]
    assert not stage.server.handle(CheckpointWritten(1, for_recovery=True), stage.now)
    assert finish(stage.server.handle(CheckpointWritten(1), stage.now)).code == 75


def test_without_minutes_there_is_no_checkpoint_for_recovery() -> None:
    stage = Stage(checkpoint_minutes=0)
    stage.join("ann")
    stage.now = 1e9
    assert not saves(stage.advance_to(2, "ann"))


def test_a_run_that_is_through_ends_at_once() -> None:
    stage = Stage(step=4, steps=4)
    assert only(stage.started, Save).state.step == 4
    end = finish(stage.server.handle(CheckpointWritten(4), stage.now))
    assert end == Finish(0, "finished at step 4")


def test_stop_ends_the_step_and_saves() -> None:
    stage = Stage()
    stage.join("ann")
    stage.deliver("ann", 0)
    assert stage.server.handle(StopRequested(75, "stopped by SIGTERM", 5.0), 0.0) == []
    effects = stage.deliver("ann", 1)
    assert only(effects, Save).state.step == 1
    assert not sent(effects, NewWeights)
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
    stage.tell("olga", Stop(**IN_RUN))
    assert finish(stage.server.handle(CheckpointWritten(0), stage.now)) == Finish(
        75, "the server was stopped by olga"
    )


def test_an_observer_gets_the_newest_weights_when_it_asks() -> None:
    stage = Stage()
    stage.join("ann")
    assert not sent(stage.hello("olga", "observer"), Weights)
    stage.advance_to(2, "ann")
    weights = only(stage.tell("olga", WeightsRequest(**IN_RUN)), Weights)
    assert weights.version == 2
    assert bytes(weights.weights) == stage.known.weights[2]
    with pytest.raises(PeerError, match="WeightsRequest from a peer that is working"):
        stage.tell("ann", WeightsRequest(**IN_RUN))


def test_an_end_has_a_reason() -> None:
    with pytest.raises(ValueError, match="no reason"):
        Finish(0, "")


def test_a_ban_is_lifted_and_remembered() -> None:
    stage = Stage(banned={"ann": "it computed step 3, shard 0 wrongly", "key-1": "the same"})
    assert only(stage.hello("ann"), Refused).reason.startswith("banned: it computed step 3")
    stage.hello("olga", "observer")
    effects = stage.tell("olga", Unban(**IN_RUN, name="ann"))
    assert only(effects, Unbanned).lifted
    assert only(effects, Unbanned).text == "ann is no longer banned; banned: key-1"
    assert only(effects, RememberBans).banned == {"key-1": "the same"}
    assert only(stage.hello("ann"), Welcome)
    effects = stage.tell("olga", Unban(**IN_RUN, name="ann"))
    assert not only(effects, Unbanned).lifted
    assert only(effects, Unbanned).text == "ann is not banned; banned: key-1"
    assert not [effect for effect in effects if isinstance(effect, RememberBans)]


def test_only_an_operator_lifts_a_ban() -> None:
    stage = Stage(banned={"ann": "it computed wrongly"})
    unban = Unban(**IN_RUN, name="ann")
    for name, role in (("olga", KeyRole.OBSERVER), ("otto", KeyRole.OPERATOR)):
        key = owner(name, role)
        stage.server.handle(Received(hello(name, "observer"), name.encode(), key), 0.0)
        effects = stage.server.handle(Received(unban, name.encode(), key), 0.0)
        assert bool(sent(effects, Refused)) is (role is KeyRole.OBSERVER)
    assert not stage.server.admission.banned


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
        Validated(0, failure="it is gone"),
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
    stage.join("ann")
    assert said(stage.wait(0.9, "ann")) == ""
    first, later = [log for log in stage.wait(11.0, "ann") if isinstance(log, Log)]
    assert first == Log("step 0 has waited 1 s for ann (shards 0 … 1)"), "the first step is long"
    assert later == Log("step 0 has waited 11 s for ann (shards 0 … 1)", Level.WARNING)
    stage.advance_to(1, "ann")
    stage.tell("ann", Goodbye(**IN_RUN, reason="stopped"))
    (text,) = [log for log in stage.wait(10.2) if isinstance(log, Log)]
    assert text == Log("step 1 has waited 10 s for a worker to connect", Level.WARNING)


def test_a_server_that_is_there_first_is_no_fault() -> None:
    stage = Stage()
    logged = [log for log in stage.wait(30.0) if isinstance(log, Log)]
    assert logged == [Log("waiting for workers (0 of up to 2)")] * 3
    started = Stage(shards=16, started_workers=2)
    assert Log("waiting for workers (0 of 2)") in started.wait(2.0)
    stage.join("ann")
    logged = [log for log in stage.wait(9.0, "ann") if isinstance(log, Log)]
    assert {log.level for log in logged} == {Level.INFO}, "its first step begins only now"


def test_the_server_says_that_it_waits_for_the_disk() -> None:
    stage = Stage()
    stage.server.handle(StopRequested(75, "stopped", 9.0), 0.0)
    words = "the disk: the checkpoint of step 0 is being written"
    first, later = [log for log in stage.wait(12.0) if isinstance(log, Log)]
    assert first == Log(f"step 0 has waited 1 s for {words}"), "no fault yet"
    assert later == Log(f"step 0 has waited 11 s for {words}", Level.WARNING)
    assert only(stage.hello("olga", "observer"), Status).waiting_for == words


def test_a_heartbeat_is_answered() -> None:
    stage = Stage()
    stage.join("ann")
    beat = Heartbeat(**IN_RUN, longest_piece=0.0, heard=0, units=())
    assert only(stage.tell("ann", beat), Alive) == Alive(**IN_RUN)
