"""Stories of the worker: what the server says, and what it computes and sends."""

import dataclasses
from typing import Any

import pytest

from manychar.protocol.client_session import ClientPhase
from manychar.protocol.effects import Compute, ComputeFingerprint, Effect, Finish, Log
from manychar.protocol.events import (
    Computed,
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
    Gradient,
    Grant,
    Heartbeat,
    Hello,
    Ready,
    Refused,
    Reset,
    Revoke,
    Unit,
    UnitState,
    Weights,
    Welcome,
    digest,
)
from manychar.protocol.run_spec import dimensions_of
from manychar.protocol.worker import Worker
from tests.protocol.stage import hello, only, said, sent, status
from tests.simulation.reference import Reference, compute, reference

RUN, TERM, SILENCE = "run-1", 3, 2.0


class Bench:
    """One worker, and a server that is played by the test."""

    def __init__(self, *, connect_timeout: float = 60.0) -> None:
        self.known: Reference = reference(3, 1, 11)
        self.worker = Worker(
            hello("ann"), server="tcp://there", connect_timeout=connect_timeout, now=0.0
        )

    def phase(self) -> ClientPhase:
        """Return its phase."""
        return self.worker.phase

    def welcome(self, **changes: Any) -> Welcome:
        message = Welcome(
            run_id=RUN,
            term=TERM,
            dimensions=dimensions_of(self.known.definition, len(self.known.vocabulary)),
            numerics="portable",
            seed=0,
            silence=SILENCE,
            vocabulary=b"",
        )
        return dataclasses.replace(message, **changes)

    def at_work(self) -> "Bench":
        """Be welcomed, and say Ready."""
        self.worker.handle(Received(self.welcome()), 0.0)
        self.worker.handle(FingerprintComputed("bits", {}, 0.1), 0.0)
        return self

    def grant(self, lease: int, shard: int, step: int = 0, **changes: Any) -> list[Effect]:
        """Grant a shard from a step on."""
        batch = self.known.streams.batch_at(shard, step)
        message = Grant(
            run_id=RUN,
            term=TERM,
            lease=lease,
            shard=shard,
            step=step,
            fresh=batch.fresh,
            weights=self.known.weights[step],
            hidden=self.known.hidden[step][shard],
            ids=batch.ids.tobytes(),
        )
        return self.worker.handle(Received(dataclasses.replace(message, **changes)), 0.0)

    def weights(self, version: int, *units: tuple[int, int, int]) -> list[Effect]:
        """Send new weights with the units (lease, shard, step) that they open."""
        batches = [self.known.streams.batch_at(shard, step) for _, shard, step in units]
        message = Weights(
            run_id=RUN,
            term=TERM,
            version=version,
            weights=self.known.weights[version],
            units=tuple(
                Unit(*unit, batch.fresh) for unit, batch in zip(units, batches, strict=True)
            ),
            ids=tuple(batch.ids.tobytes() for batch in batches),
        )
        return self.worker.handle(Received(message), 0.0)

    def take(self) -> Compute:
        """Let it take up a unit, with its mailbox read to the end."""
        return only(self.worker.handle(MailboxEmpty(), 0.0), Compute)

    def through(self, unit: Compute) -> list[Effect]:
        """Let it be through with a unit."""
        assert self.worker.dimensions
        piece = compute(unit, self.worker.dimensions)
        return self.worker.handle(piece.computed(unit.shard, unit.step, seconds=0.2), 0.0)


def test_it_connects_computes_its_fingerprint_and_says_ready() -> None:
    bench = Bench()
    assert only(bench.worker.handle(DeadlinePassed(), 0.0), Hello).name == "ann"
    assert bench.worker.handle(DeadlinePassed(), 0.1) == []
    assert only(bench.worker.handle(DeadlinePassed(), 0.2), Hello)
    assert only(bench.worker.handle(Received(bench.welcome()), 0.3), ComputeFingerprint)
    assert bench.phase() is ClientPhase.CONNECTING
    ready = only(bench.worker.handle(FingerprintComputed("bits", {"blas": "x"}, 0.1), 0.4), Ready)
    assert (ready.fingerprint, ready.term, ready.slowest) == ("bits", TERM, 0.1)
    assert bench.phase() is ClientPhase.CONNECTED


def test_it_computes_what_it_is_granted_and_names_what_it_used() -> None:
    bench = Bench().at_work()
    assert bench.grant(7, 1) == []
    unit = bench.take()
    assert (unit.shard, unit.step, unit.fresh) == (1, 0, True)
    gradient = only(bench.through(unit), Gradient)
    piece = bench.known.pieces[1, 0]
    assert (gradient.loss, gradient.gradient) == (piece.loss, piece.gradient)
    assert (gradient.lease, gradient.shard, gradient.step) == (7, 1, 0)
    assert gradient.hidden_digest == digest(bench.known.hidden[0][1])


def test_it_takes_its_lowest_shard_with_the_mailbox_emptied() -> None:
    bench = Bench().at_work()
    bench.grant(1, 2)
    bench.grant(2, 1)
    bench.grant(3, 0)
    order = []
    for _ in range(3):
        unit = bench.take()
        order.append(unit.shard)
        bench.through(unit)
    assert order == [0, 1, 2]


def test_weights_that_come_while_it_computes_leave_it_without_a_hidden_state() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    late = bench.take()
    bench.weights(1, (1, 0, 1))
    assert only(bench.through(late), Gradient).step == 0
    assert bench.worker.handle(MailboxEmpty(), 0.0) == []
    bench.grant(1, 0, 1)
    assert bench.take().step == 1


def test_steps_of_a_shard_chain_through_its_own_hidden_state() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    bench.through(bench.take())
    assert bench.worker.handle(MailboxEmpty(), 0.0) == []
    bench.weights(1, (1, 0, 1))
    unit = bench.take()
    assert bytes(unit.hidden) == bench.known.hidden[1][0]
    assert bytes(unit.weights) == bench.known.weights[1]


def test_weights_and_grants_sent_again_elicit_the_same_bytes_again() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    first = only(bench.through(bench.take()), Gradient)
    assert only(bench.grant(1, 0), Gradient) == first
    assert only(bench.weights(0, (1, 0, 0)), Gradient) == first
    assert bench.worker.handle(MailboxEmpty(), 0.0) == []


def test_what_the_next_weights_acknowledge_is_forgotten() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    bench.through(bench.take())
    bench.weights(1, (1, 0, 1))
    assert bench.grant(1, 0) == []
    assert bench.take().step == 1


def test_a_grant_again_while_it_is_computed_changes_nothing() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    unit = bench.take()
    bench.grant(1, 0)
    bench.through(unit)
    assert bench.worker.handle(MailboxEmpty(), 0.0) == []


def test_a_revoked_worker_still_delivers_what_it_began() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    bench.grant(2, 1)
    unit = bench.take()
    for lease in (1, 2):
        bench.worker.handle(Received(Revoke(run_id=RUN, term=TERM, lease=lease)), 0.0)
    assert only(bench.through(unit), Gradient).shard == 0
    assert bench.worker.handle(MailboxEmpty(), 0.0) == []


def test_an_older_lease_of_the_same_shard_is_ignored() -> None:
    bench = Bench().at_work()
    bench.grant(5, 0)
    bench.grant(4, 0)
    assert only(bench.through(bench.take()), Gradient).lease == 5


def test_a_newer_lease_makes_the_older_void() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    bench.through(bench.take())
    bench.grant(2, 0)
    assert only(bench.through(bench.take()), Gradient).lease == 2


def test_another_terms_messages_are_passed_over() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0, term=TERM - 1)
    bench.grant(1, 0, run_id="run-2")
    assert bench.worker.handle(MailboxEmpty(), 0.0) == []


def test_a_reset_drops_everything_and_connects_again() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    unit = bench.take()
    effects = bench.worker.handle(Received(Reset(run_id=RUN, term=TERM + 1)), 0.0)
    assert only(effects, Hello)
    assert bench.through(unit) == []
    assert bench.phase() is ClientPhase.CONNECTING


def test_a_new_term_is_a_new_beginning() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    unit = bench.take()
    assert only(
        bench.worker.handle(Received(bench.welcome(term=TERM + 1)), 0.0), ComputeFingerprint
    )
    assert bench.through(unit) == []
    assert bench.worker.handle(Received(bench.welcome()), 0.0) == []


def test_after_a_silent_server_returns_it_finds_the_worker_unchanged() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    first = only(bench.through(bench.take()), Gradient)
    assert "the server at tcp://there has sent nothing for 4 s: connecting again" in said(
        bench.worker.handle(DeadlinePassed(), 4.0)
    )
    assert only(bench.worker.handle(DeadlinePassed(), 4.0), Hello)
    assert only(bench.worker.handle(Received(bench.welcome()), 4.1), Ready)
    assert only(bench.grant(1, 0), Gradient) == first


def test_it_reports_the_wait_and_gives_up_at_the_connect_timeout() -> None:
    bench = Bench(connect_timeout=10.0)
    assert only(bench.worker.handle(DeadlinePassed(), 2.0), Log).text == (
        "waiting for a server at tcp://there, up to 8 s"
    )
    finish = only(bench.worker.handle(DeadlinePassed(), 10.0), Finish)
    assert finish == Finish(3, "no server at tcp://there for 10 s (--connect-timeout)")
    assert bench.worker.deadline() is None
    assert bench.worker.handle(DeadlinePassed(), 11.0) == []


def test_a_heartbeat_lists_the_units() -> None:
    bench = Bench().at_work()
    bench.grant(1, 0)
    bench.grant(2, 1)
    bench.through(bench.take())
    bench.take()
    bench.grant(3, 2)
    beat = only(bench.worker.handle(HeartbeatDue(), 1.0), Heartbeat)
    assert set(beat.units) == {
        Unit(1, 0, 0, UnitState.SENT),
        Unit(2, 1, 0, UnitState.COMPUTING),
        Unit(3, 2, 0, UnitState.QUEUED),
    }
    assert beat.slowest == 0.2
    assert bench.worker.handle(HeartbeatDue(), 1.1) == []
    assert only(bench.worker.handle(HeartbeatDue(), 1.0 + SILENCE / 4), Heartbeat)


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
        (Done(run_id=RUN, term=TERM, code=0, reason="through"), 0),
        (Done(run_id=RUN, term=TERM, code=75, reason="stopped"), 75),
        (Done(run_id=RUN, term=TERM, code=3, reason="disk full"), 75),
    ],
)
def test_the_server_ends_it(message: Refused | Done, code: int) -> None:
    bench = Bench().at_work()
    assert only(bench.worker.handle(Received(message), 0.0), Finish).code == code
    assert bench.worker.handle(Received(Alive(run_id=RUN, term=TERM)), 0.0) == []


def test_what_the_tables_do_not_list_is_an_error_of_whose_it_is() -> None:
    bench = Bench().at_work()
    with pytest.raises(ProtocolError, match="computed a unit that is not in hand"):
        bench.worker.handle(Computed(0, 0, 0.0, b"", b"", 0.0, 0.0), 0.0)
    with pytest.raises(ProtocolError, match="FingerprintComputed to a client that is connected"):
        bench.worker.handle(FingerprintComputed("bits", {}, 0.0), 0.0)
    with pytest.raises(PeerError, match="Ready to a client that is connected"):
        bench.worker.handle(
            Received(Ready(run_id=RUN, term=TERM, fingerprint="x", libraries={}, slowest=0.0)), 0.0
        )


def test_a_status_is_not_for_workers() -> None:
    bench = Bench().at_work()
    with pytest.raises(PeerError):
        bench.worker.handle(Received(status()), 0.0)
