"""The sides that need neither PyTorch nor Ray go for a tiny round; tables and ratios."""

import dataclasses
import math
from pathlib import Path

import pytest

from manychar.fleet.capacity import Costs, Fleet, predict
from manychar.protocol.dimensions import Dimensions
from tests.benchmarks import running, to_loss
from tests.benchmarks.asking import Side, Together
from tests.benchmarks.comparison import Comparison, comparisons
from tests.benchmarks.idle_fleet import IdleFleet, ServerThread
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import Figures, interleave
from tests.benchmarks.rows import capacity, relays, targets, texts
from tests.benchmarks.running import sizes
from tests.benchmarks.shared_memory import SharedMemory, shared
from tests.benchmarks.sides.crossing import crossing
from tests.benchmarks.to_loss import Clock, FleetToLoss, until_loss

TEXT = "to be, or not to be, that is the question: " * 200


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    return Plan(text=text, scratch=tmp_path, rounds=1, seconds=0.05)


def test_a_side_goes_as_often_as_it_is_told(plan: Plan) -> None:
    with Side("single", plan.task(hidden=16)) as ours, Side("plain", plan.task(hidden=16)) as plain:
        ours.until_ready()
        plain.until_ready()
        found = interleave({"ours": ours, "plain": plain}, 2)
    assert [len(figures.values) for figures in found.values()] == [2, 2]
    assert min(found["ours"].values + found["plain"].values) > 0


def test_the_bytes_alone_go_to_and_fro(plan: Plan) -> None:
    with Side("bare", plan.task(hidden=16)) as bare:
        bare.until_ready()
        assert bare.measure(0) > 0


def test_two_that_go_together_add_up(plan: Plan) -> None:
    with Together([Side("single", plan.task(hidden=16)) for _ in range(2)]) as two:
        two.until_ready()
        assert two.measure(0) > 0


@pytest.mark.long
def test_a_fleet_goes_beside_one_process(plan: Plan) -> None:
    task = plan.task(numerics="portable", hidden=16, shards=2)
    pairs = [(targets.TWO, targets.SAME, 1.5), (targets.TWO, targets.BEFORE, 1.0)]
    (row,) = targets.beside_one_process(plan, task, pairs)  # without an earlier version
    assert row.ratio.median > 0
    assert comparisons([row]).splitlines()[2].endswith("| 1.50x |")


@pytest.mark.long
def test_workers_that_compute_nothing_exchange_all_the_same(plan: Plan) -> None:
    task = plan.task(numerics="portable", hidden=16, shards=2)
    assert IdleFleet(plan, task).measure(0) > 0
    if Path("/proc/self/schedstat").exists():
        assert min(relays.figures(IdleFleet(plan, task, relays=1))) > 0
    if Path("/proc/self/schedstat").exists():
        assert ServerThread(plan, task).measure(0) > 0


@pytest.mark.long
def test_a_fleet_s_long_frames_go_through_shared_memory(plan: Plan, tmp_path: Path) -> None:
    memory, long = SharedMemory(), bytes(range(256)) * 300
    placed = memory.placed([b"short", long, long])
    assert max(map(len, placed)) < 100
    assert [bytes(each) for each in SharedMemory().found(placed)] == [b"short", long, long]
    flags = ["--workers", "2", "--no-compute", *sizes(plan.task(hidden=150, shards=2))]
    assert running.Fleet(plan, *flags, program=shared(tmp_path)).measure(0) > 0


@pytest.mark.long
def test_a_loss_is_reached_by_a_fleet_and_by_one_process(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_loss, "MOST_CHARACTERS", 300_000)
    plan = dataclasses.replace(plan, validation_characters=500, target=2.0)
    task = plan.task(numerics="portable", hidden=16, shards=2, streams=16)
    batch = until_loss(plan, task.in_one_batch(), "batch")
    with Side("one_to_loss", batch) as one:
        one.until_ready()
        assert 0 < one.measure(0) < plan.cap
    with Side("validation", until_loss(plan, task)) as validator:
        validator.until_ready()
        fleet = FleetToLoss(plan, task, validator)
        assert 0 < fleet.measure(0) < plan.cap


def test_a_ratio_is_that_of_the_median_round() -> None:
    row = Comparison(
        what="this",
        ours=Figures((1.0, 3.0, 2.0)),
        against="that",
        theirs=Figures((6.0, 4.0, 5.0)),
        less_is_better=True,
    )
    assert math.isclose(row.ratio.median, 2.5)
    assert comparisons([row]).endswith(
        "| this | 2.00 (1.00 … 3.00) | that | 5.00 (4.00 … 6.00) | 2.50x (1.33 … 6.00) |\n"
    )


def test_a_step_before_the_first_line_is_not_before_the_start() -> None:
    slowing = Clock([(100, 0.05), (200, 0.2), (300, 0.35)])
    assert [slowing.time_of(step) for step in (0, 50, 100, 400)] == pytest.approx(
        [0, 0.025, 0.05, 0.5]
    )
    even = Clock([(100, 1.2), (200, 1.4)])
    assert even.start == pytest.approx(1.0)
    assert [even.time_of(step) for step in (0, 50, 300)] == pytest.approx([0, 0.1, 0.6])


def test_a_crossing_lies_between_its_two_points() -> None:
    assert math.isclose(crossing((1.0, 2.4), (2.0, 2.0), 2.2), 1.5)


def test_costs_are_found_again_from_what_they_make() -> None:
    costs, idle = dataclasses.replace(Costs(), unit=2e-4, relay=7e-4), (0.05, 0.1)
    known = [_run_of(costs, idle, *case, keys=False) for case in capacity.FITTED]
    encrypted = _run_of(costs, idle, *capacity.WITH_KEYS, keys=True)
    relayed = _run_of(costs, idle, *capacity.RELAYED, keys=False)
    found, found_idle = capacity.fit(known, encrypted, relayed)
    for run in known:
        parts = capacity.predicted(run, found, found_idle)
        assert parts == pytest.approx((run.server, run.computing, run.transfers), rel=0.02)
    assert found.encrypted_byte == pytest.approx(costs.encrypted_byte, rel=0.02)
    assert found.relay == pytest.approx(costs.relay, rel=0.1)


def _run_of(
    costs: Costs,
    idle: tuple[float, float],
    hidden: int,
    shards: int,
    streams: int,
    workers: int,
    *,
    keys: bool,
) -> capacity._Run:
    size = Dimensions(
        vocabulary_size=103,
        hidden=hidden,
        seq_length=25,
        streams=streams,
        shards=shards,
        dtype="float32",
    )
    bytes_of = predict(Fleet(size=size, workers=workers))
    moved, seconds = bytes_of.bytes_in + bytes_of.bytes_out, 1e-3 * hidden * streams / workers
    return capacity._Run(
        size,
        workers,
        seconds,
        costs.of_step(size) + costs.of_units(size, workers, workers) + idle[0] * seconds,
        workers * (costs.worker + idle[1] * seconds) + shards * costs.of_shard(size),
        2 * costs.of_messages(2 * workers, moved, keys=keys),
        costs.of_relay(size) + costs.of_units(size, workers, workers) + idle[0] * seconds,
    )


def test_texts_of_each_kind_are_read(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LENGTH", 40_000)
    _, table = texts.run(plan)
    assert len(table.splitlines()) == 2 + 5
