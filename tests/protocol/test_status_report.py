"""How each worker spends its time, and who is late."""

import dataclasses
import math
from collections.abc import Callable
from statistics import fmean

import pytest

from manychar.numerics.run_definition import Definition
from manychar.protocol import status_report
from manychar.protocol.counters import Counter
from manychar.protocol.effects import Append
from manychar.protocol.events import (
    DeadlinePassed,
    Malformed,
    PeerLost,
    Received,
    Started,
    Suspended,
)
from manychar.protocol.field_types import MAX_INTEGER
from manychar.protocol.messages import PAGE_LENGTH, RELAYS, Ready, Status
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.server import ParameterServer
from manychar.protocol.status_report import is_divergence
from manychar.protocol.worker_tally import WorkerStats
from tests.protocol.stage import FINGERPRINT, IN_RUN, Stage, hello, only, said, sent, status


def seen(stage: Stage) -> dict[str, WorkerStats]:
    """Return what a new observer is told of each worker."""
    pages = sent(stage.hello("olga", "observer"), Status)
    stage.server.admission._remove(stage.member("olga"), stage.now)
    return {worker.name: worker for page in pages for worker in page.workers}


def test_workers_below_a_silent_relay_are_silent_and_hold_nothing() -> None:
    """Others hold their shards by now: the relay's last report would count them twice."""
    stage = Stage()
    stage.join("rack", "ann")
    (entry,) = (each for each in seen(stage).values() if each.name == "ann")
    below = entry._replace(name="bob", state="working", shards=2, late_seconds=1.5, relay="")
    stage.member("rack").is_relay, stage.member("rack").below = True, (below,)
    assert seen(stage)["bob"] == below._replace(relay="rack")
    stage.wait(5.0, "ann")
    found = seen(stage)
    assert found["rack"].state == "silent"
    assert found["bob"] == below._replace(relay="rack", state="silent", shards=0, late_seconds=0.0)
    assert sum(each.shards for each in found.values()) == stage.known.definition.shards


def test_a_relay_to_which_no_worker_is_connected_is_not_called_idle() -> None:
    stage = Stage()
    stage.join(*(f"w{i}" for i in range(10)), "rack")  # more than there are shards
    assert seen(stage)["rack"].state == "idle"
    stage.member("rack").workers = 0
    assert seen(stage)["rack"].state == "without-workers"


def relay(stage: Stage, instance: str, peer: bytes = b"rack") -> None:
    """Let a relay connect, in the place of any of this connection."""
    machine = {RELAYS: instance}
    said_first = dataclasses.replace(hello("rack"), instance=instance, machine=machine)
    stage.server.handle(Received(said_first, peer), stage.now)


def failed_handshakes(stage: Stage, *told: int, by: bytes = b"rack") -> int:
    """Let a relay tell of so many, one after the other; return how many are shown then."""
    for number in told:
        page = status(counts={"handshakes_failed": number})
        stage.server.handle(Received(page, by), stage.now)
    return stage.server.status_report.figures(stage.now).counts.get("handshakes_failed", 0)


def test_the_counts_of_a_relay_stay_when_it_is_gone() -> None:
    stage = Stage()
    stage.server.outbox.count(Counter.HANDSHAKES_FAILED)
    relay(stage, "1")
    assert failed_handshakes(stage, 4, 6) == 7
    stage.server.handle(PeerLost(b"rack"), stage.now)
    assert failed_handshakes(stage) == 7
    relay(stage, "2")
    assert failed_handshakes(stage) == 7, "another process of that name"
    assert failed_handshakes(stage, 2) == 9
    relay(stage, "2", b"again")
    assert failed_handshakes(stage) == 9, "the same process connects again: it counts on"
    assert failed_handshakes(stage, 3, by=b"again") == 10
    assert failed_handshakes(stage, 1, by=b"again") == 10, "no count ever falls"


def test_the_counts_of_many_relays_that_are_gone_take_no_more_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status_report, "MOST_GONE", 3)
    stage = Stage()
    relay(stage, "here", b"here")
    for number in range(1, 21):
        relay(stage, f"{number}")
        assert failed_handshakes(stage, 5) == 6 * number - 1
        assert failed_handshakes(stage, number, by=b"here") == 6 * number
    assert len(stage.server.status_report._relayed) <= 3 + 1


def test_what_a_client_that_is_no_relay_says_of_counts_is_not_shown() -> None:
    stage = Stage()
    stage.join("rack")
    assert failed_handshakes(stage, 4) == 0


def test_counts_that_are_too_large_for_a_message_are_cut() -> None:
    stage = Stage()
    for name in (b"rack", b"row"):
        relay(stage, name.decode(), name)
        shown = failed_handshakes(stage, MAX_INTEGER, by=name)
    assert shown == MAX_INTEGER


def test_the_loss_is_the_mean_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_report, "LOSS_STEPS", 4)
    stage = Stage()
    stage.join("ann")
    assert math.isnan(stage.server.status_report.figures(0.0).loss_nats_per_character)
    size, losses = stage.known.definition.seq_length, []
    for step in range(1, 8):
        losses += [only(stage.advance_to(step, "ann"), Append).loss / size]
    figures = stage.server.status_report.figures(0.0)
    assert figures.loss_nats_per_character == pytest.approx(fmean(losses[-4:]))
    assert figures.loss_sum_nats_per_character == pytest.approx(sum(losses))
    smooth_loss = stage.server.aggregation.state.smooth_loss
    assert figures.smooth_loss_nats_per_character == smooth_loss / size


@pytest.mark.parametrize(("nats", "says"), [(4.0, False), (40.0, True)])
@pytest.mark.parametrize("step", [20, 100])
def test_a_loss_far_above_is_a_divergence_at_once(*, step: int, nats: float, says: bool) -> None:
    one = Definition(corpus_sha256="0" * 64, shards=1, streams=1)
    assert is_divergence(one, 20, step, nats) is says


@pytest.mark.parametrize("few", [9, 1])
def test_divergence_is_said_once(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """First 2 steps after the warm-up of 2; with few streams, where losses vary, after 4."""
    monkeypatch.setattr(status_report, "LOSS_STEPS", 2)
    monkeypatch.setattr(status_report, "FEW_STREAMS", few)
    monkeypatch.setattr(status_report, "STEPS_OF_FEW_STREAMS", 4)
    stage = Stage()
    report, size = stage.server.status_report, stage.known.definition.seq_length
    at = size * math.log(stage.server.dimensions.vocabulary_size)
    definition = dataclasses.replace(stage.known.definition, warmup=2)
    spec = dataclasses.replace(stage.server.spec, definition=definition)
    monkeypatch.setattr(report, "_spec", spec)
    stage.join("ann")
    told = [said(stage.deliver("ann", (0, 1), losses=[at + 0.1] * 2)) for _ in range(8)]
    first = 6 if few > definition.total_streams else 4
    assert ["training diverges with --learning-rate 0.1: " in each for each in told] == [
        step == first for step in range(1, 9)
    ]
    assert report.figures(0.0).divergence in told[first - 1]
    for _ in range(2):
        stage.deliver("ann", (0, 1), losses=[0.0] * 2)
    assert report.figures(0.0).divergence == ""
    report._look_for_divergence(at)
    assert report.divergence, "status says so"
    again = said(stage.server.outbox.collect())
    assert "training diverges" not in again, "of noise the loss crosses the limit often"


@pytest.fixture
def from_step_2(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunSpec], RunSpec]:
    """Look for a divergence at every second step, without a warm-up."""
    monkeypatch.setattr(status_report, "LOSS_STEPS", 2)
    monkeypatch.setattr(status_report, "FEW_STREAMS", 0)

    def without_warmup(spec: RunSpec) -> RunSpec:
        definition = dataclasses.replace(spec.definition, warmup=0)
        return dataclasses.replace(spec, definition=definition)

    return without_warmup


@pytest.mark.parametrize(("loss", "says"), [(1e4, True), (10.0, False)])
def test_divergence_is_said_until_the_smooth_loss_is_low_too(
    monkeypatch: pytest.MonkeyPatch,
    from_step_2: Callable[[RunSpec], RunSpec],
    loss: float,
    *,
    says: bool,
) -> None:
    """The mean of the last steps alone may be just below the limit at the end of a run."""
    stage = Stage()
    report = stage.server.status_report
    monkeypatch.setattr(report, "_spec", from_step_2(stage.server.spec))
    stage.join("ann")
    for each in (loss, loss, *[0.0] * 6):
        stage.deliver("ann", (0, 1), losses=[each] * 2)
    assert bool(report.divergence) is says


def test_a_smooth_loss_that_is_still_high_from_the_start_is_no_divergence(
    monkeypatch: pytest.MonkeyPatch, from_step_2: Callable[[RunSpec], RunSpec]
) -> None:
    stage = Stage()
    report = stage.server.status_report
    monkeypatch.setattr(report, "_spec", from_step_2(stage.server.spec))
    monkeypatch.setattr(status_report, "FAR_ABOVE", math.inf)
    monkeypatch.setattr(status_report, "FEW_STREAMS", 9)
    monkeypatch.setattr(status_report, "STEPS_OF_FEW_STREAMS", 4)
    stage.join("ann")
    for loss in (1e4, 1e4, 0.0, 0.0):
        stage.deliver("ann", (0, 1), losses=[loss] * 2)
    assert report.divergence == ""


@pytest.mark.parametrize(("factor", "says"), [(0.99, False), (1.01, True)])
def test_a_resumed_run_says_that_it_diverges(
    from_step_2: Callable[[RunSpec], RunSpec], factor: float, *, says: bool
) -> None:
    known = from_step_2(Stage(step=4).server.spec)
    limit = known.definition.seq_length * math.log(known.dimensions.vocabulary_size)
    state = dataclasses.replace(known.state, smooth_loss=limit * factor)
    server = ParameterServer(dataclasses.replace(known, state=state), now=0.0)
    assert ("training diverges" in said(server.handle(Started(), 0.0))) is says
    assert bool(server.status_report.divergence) is says


def test_who_has_nothing_to_do_waits_and_who_owes_is_late() -> None:
    stage = Stage(shards=3)
    stage.share("ann", "bob")
    stage.deliver("ann", stage.ranges_of("ann")[0], seconds=0.25)
    stage.now += 1.0
    ann, bob = seen(stage)["ann"], seen(stage)["bob"]
    assert (ann.waiting, ann.late_seconds) == (1.0, 0.0)
    assert (bob.waiting, bob.late_seconds) == (0.0, 1.0)
    assert (ann.shards, bob.shards) == (2, 1)
    assert ann.gradients == 3 + 2, "shards, not messages"

    stage.deliver("bob", stage.ranges_of("bob")[0], seconds=0.25)
    stage.now += 1.0
    ann, bob = seen(stage)["ann"], seen(stage)["bob"]
    assert (ann.waiting, bob.waiting) == (0.5, 0.0), "both have the next step to compute"
    assert (ann.late_seconds, bob.late_seconds) == (1.0, 1.0)
    assert (bob.computing, bob.exchanging) == (0.25, 0.75), (
        "the unit in hand takes as long as the last"
    )


def test_the_straggler_is_who_the_step_waits_for_alone() -> None:
    stage = Stage(shards=3)
    stage.share("ann", "bob")
    for _ in range(5):
        stage.now += 1.0
        stage.deliver("ann", (0, 0))
        stage.now += 1.0
        stage.deliver("bob", (1, 2))
    ann, bob = seen(stage)["ann"], seen(stage)["bob"]
    assert (ann.straggling, bob.straggling) == (0.0, 0.5)


def test_what_was_before_a_worker_joined_is_not_its_share() -> None:
    """The time of a first step begins long before, as the server's does."""
    stage = Stage()
    stage.now += 5.0
    stage.share("ann", "bob")
    stage.deliver("bob", stage.ranges_of("bob")[0], seconds=1.0)
    stage.now += 1.0
    stage.deliver("ann", stage.ranges_of("ann")[0], seconds=1.0)
    stage.now += 3.0
    assert seen(stage)["ann"].straggling == 0.25


def test_a_worker_alone_is_no_straggler() -> None:
    stage = Stage(shards=3)
    stage.join("ann")
    for _ in range(5):
        stage.now += 1.0
        stage.deliver("ann", (0, 2))
    assert seen(stage)["ann"].straggling == 0.0


def test_no_share_is_negative_where_a_suspension_is_noticed_after_the_result() -> None:
    stage = Stage()
    stage.join("ann")
    stage.now += 1.0
    stage.deliver("ann", (0, 1), seconds=0.1)
    stage.server.handle(Suspended(5.0), stage.now)
    ann = seen(stage)["ann"]
    assert min(ann.computing, ann.exchanging, ann.waiting) >= 0.0


def test_a_unit_of_half_a_minute_is_computed_all_the_time() -> None:
    stage = Stage()
    stage.join("ann")
    for _ in range(3):
        for _ in range(30):
            stage.wait(1.0, "ann")
            ann = seen(stage)["ann"]
            assert ann.computing > 0.99
        stage.deliver("ann", (0, 1), seconds=15.0)


def test_shares_are_of_the_last_ten_seconds() -> None:
    stage = Stage()
    stage.join("ann")
    stage.wait(60.0, "ann")
    assert seen(stage)["ann"].computing == 1.0, "its first unit takes long"
    for _ in range(11):
        stage.wait(1.0, "ann")
        stage.deliver("ann", (0, 1), seconds=0.25)
    ann = seen(stage)["ann"]
    assert ann.computing == pytest.approx(0.5, abs=0.06)
    assert ann.shards_per_second == pytest.approx(2.0, rel=0.15)
    assert ann.shard_seconds == 0.25


def test_a_status_asked_for_twice_at_once_says_the_same() -> None:
    stage = Stage()
    stage.join("ann")
    stage.now += 3.0
    assert seen(stage) == seen(stage)


def test_a_status_says_what_the_run_waits_for_once_a_step_is_long() -> None:
    stage = Stage()
    stage.join("ann")

    def waiting() -> set[str]:
        pages = sent(stage.hello("olga", "observer"), Status)
        stage.server.admission._remove(stage.member("olga"), stage.now)
        return {page.waiting_for for page in pages}

    assert waiting() == {""}
    stage.now += 1.1
    assert waiting() == {"ann (shards 0 … 1)"}
    stage.advance_to(1, "ann")
    assert waiting() == {""}


def test_standing_by_is_waiting() -> None:
    stage = Stage()
    everyone = [f"w{i}" for i in range(stage.known.definition.shards + 1)]
    stage.join(*everyone)
    stage.now += 3.0
    last = everyone[-1]
    assert (seen(stage)[last].state, seen(stage)[last].waiting) == ("idle", 1.0)
    stage.server.admission._remove(stage.member(everyone[0]), stage.now)
    stage.now += 1.0
    assert seen(stage)[last].state == "working"
    assert seen(stage)[last].waiting == pytest.approx(3.0 / 4.0)


def test_a_worker_that_is_too_slow_for_a_range_is_said_to_be() -> None:
    stage = Stage(shards=3)
    stage.share("ann", "bob")
    bob = stage.member("bob")
    stage.server.membership.end_leases(b"bob")
    assert seen(stage)["bob"].state == "idle"
    bob.speed.note(5.0)
    bob.speed.note_no_range(stage.now, too_slow=True)
    assert seen(stage)["bob"].state == "slow"


def test_dropped_messages_are_counted_by_worker() -> None:
    stage = Stage()
    stage.join("ann")
    stage.deliver("ann", 0)
    stage.deliver("ann", 0)
    stage.server.handle(Malformed(b"ann", "no message"), stage.now)
    assert (seen(stage)["ann"].gradients, seen(stage)["ann"].dropped) == (1, 2)


def test_many_workers_are_told_of_in_pages() -> None:
    stage = Stage()
    names = [f"w{i}" for i in range(2 * PAGE_LENGTH + 1)]
    stage.join(*names)
    pages = sent(stage.hello("olga", "observer"), Status)
    assert [page.first for page in pages] == [0, PAGE_LENGTH, 2 * PAGE_LENGTH]
    assert [worker.name for page in pages for worker in page.workers] == names
    assert {page.total for page in pages} == {len(names)}


def test_observers_are_told_every_second() -> None:
    stage = Stage()
    stage.join("ann")
    stage.hello("olga", "observer")
    stage.server.handle(DeadlinePassed(), stage.now)
    stage.now += 0.9
    assert not sent(stage.server.handle(DeadlinePassed(), stage.now), Status)
    stage.now += 0.2
    (page,) = sent(stage.server.handle(DeadlinePassed(), stage.now), Status, "olga")
    assert [worker.name for worker in page.workers] == ["ann"]


def test_observers_are_told_at_once_that_others_hold_the_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a line of progress right after a worker has joined says that there is none."""
    monkeypatch.setattr(status_report, "WORKERS_A_SECOND", 5)
    stage = Stage()
    stage.hello("olga", "observer")
    stage.server.handle(DeadlinePassed(), stage.now)
    stage.join("ann")

    def told_of(seconds: float) -> list[tuple[str, ...]]:
        stage.now += seconds
        pages = sent(stage.server.handle(DeadlinePassed(), stage.now), Status, "olga")
        return [tuple(each.name for each in page.workers if each.shards) for page in pages]

    assert told_of(0.0) == [("ann",)]
    stage.join("bob")
    stage.advance_to(1, "ann")
    assert told_of(0.1) == [], "one worker is told of at most five times a second"
    assert told_of(0.1) == [("ann", "bob")]
    stage.server.admission._remove(stage.member("ann"), stage.now)
    assert told_of(0.4) == [("bob",)]
    assert told_of(0.5) == [], "nothing has changed"


def test_more_workers_are_told_of_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_report, "WORKERS_A_SECOND", 2)
    stage = Stage()
    stage.join(*(f"w{i}" for i in range(4)))
    stage.hello("olga", "observer")
    stage.server.handle(DeadlinePassed(), stage.now)
    stage.now += 1.9
    late = sent(stage.server.handle(DeadlinePassed(), stage.now), Status, "olga")
    assert not [page for page in late if page.workers]
    stage.now += 0.2
    (page,) = sent(stage.server.handle(DeadlinePassed(), stage.now), Status, "olga")
    assert len(page.workers) == 4


def test_the_figures_alone_are_sent_at_most_five_times_a_second() -> None:
    stage = Stage()
    stage.join("ann")
    stage.hello("olga", "observer")
    stage.server.handle(DeadlinePassed(), stage.now)
    found = []
    for _ in range(7):  # a step every 0.125 s
        stage.advance_to(stage.server.state.step + 1, "ann")
        stage.now += 0.125
        found += sent(stage.server.handle(DeadlinePassed(), stage.now), Status, "olga")
    assert [(page.step, page.workers, page.first == page.total) for page in found] == [
        (step, (), True) for step in (2, 4, 6)
    ]


def test_time_without_a_lease_is_counted_once() -> None:
    stage = Stage()
    everyone = [f"w{i}" for i in range(stage.known.definition.shards)]
    stage.join(*everyone, "last")
    for _ in range(3):
        stage.now += 10.0
        stage.server.admission._remove(stage.member(everyone[0]), stage.now)
        stage.now += 10.0
        stage.join(everyone[0])
    assert stage.member("last").tally.waiting <= 60.0


def test_a_worker_that_came_back_is_told_of_once() -> None:
    stage = Stage()
    stage.join("ann", "bob")
    stage.wait(5.0, "bob")
    assert seen(stage)["ann"].state == "silent"
    again = hello("ann")
    stage.server.handle(
        Received(dataclasses.replace(again, instance="2"), b"another connection"), stage.now
    )
    ready = Ready(**IN_RUN, fingerprint=FINGERPRINT, libraries={}, longest_piece=0.0)
    stage.server.handle(Received(ready, b"another connection"), stage.now)
    pages = sent(stage.hello("olga", "observer"), Status)
    names = [worker.name for page in pages for worker in page.workers]
    assert sorted(names) == ["ann", "bob"]


def test_the_time_in_which_the_machine_was_stopped_counts_for_nobody() -> None:
    """As by Ctrl-Z: workers say that they took longer, because they were stopped, too."""
    stage = Stage(shards=4, steps=0)
    stage.share("ann", "bob")

    def step(took: float) -> None:
        stage.now += 0.1
        for name, shards in (("ann", (0, 1)), ("bob", (2, 3))):
            stage.deliver(name, shards, seconds=took)

    for _ in range(6):
        step(0.02)
    before, (page,) = seen(stage), stage.server.status_report.pages(stage.now)
    assert before["ann"].computing < 0.6
    stage.now += 15.0
    stage.server.handle(Suspended(15.0), stage.now)
    step(7.5)
    after, (now,) = seen(stage), stage.server.status_report.pages(stage.now)
    assert now.seconds == pytest.approx(page.seconds + 0.1)
    for name, worker in after.items():
        assert worker.late_seconds == pytest.approx(0.0)
        assert worker.shard_seconds == before[name].shard_seconds
        assert worker.shards_per_second == pytest.approx(before[name].shards_per_second, rel=0.1)
        assert worker.straggling < 0.9
        assert worker.computing == pytest.approx(before[name].computing, abs=0.2)
    step(0.06)
    assert seen(stage)["ann"].shard_seconds > before["ann"].shard_seconds, "it counts again"


def test_a_stop_that_the_server_did_not_take_part_in_is_slowness() -> None:
    stage = Stage(shards=4, steps=0)
    stage.share("ann", "bob")
    stage.deliver("ann", (0, 1), seconds=0.05)
    stage.deliver("bob", (2, 3), seconds=7.5)
    assert seen(stage)["bob"].shard_seconds > 3
