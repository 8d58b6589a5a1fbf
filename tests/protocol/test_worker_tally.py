"""How the workers' time of the last ten seconds is shared out, on a clock of the test's own."""

import pytest

from manychar.protocol.events import DeadlinePassed
from manychar.protocol.messages import Status, WorkerStats
from manychar.protocol.worker_tally import RecentUse, WorkerTally
from tests.protocol.stage import Stage, sent


def use(tally: WorkerTally, begin: int, end: int, *, computes: float, waits: float) -> RecentUse:
    """Let a worker compute 4 shards a second, and then wait; return its use at the end."""
    for second in range(begin, end):
        tally.delivered(4, computes, second + 1 - waits)
        tally.waits_until(second + 1.0)
        found = tally.recent(second + 1.0, is_awaited=True)
    return found


def test_the_shares_are_those_of_the_last_ten_seconds() -> None:
    tally = WorkerTally()
    first = use(tally, 0, 40, computes=0.5, waits=0.25)
    assert first == pytest.approx((0.5, 0.25, 0.25, 0.0, 4.0))
    between = use(tally, 40, 45, computes=0.1, waits=0.8)
    assert first.computing > between.computing > 0.1
    after = use(tally, 45, 51, computes=0.1, waits=0.8)
    assert after == pytest.approx((0.1, 0.1, 0.8, 0.0, 4.0))
    assert tally.gradients == 51 * 4


def test_a_worker_that_has_just_come_has_shares_of_its_own_time() -> None:
    tally = WorkerTally(since=100.0, delivered_at=100.0)
    tally.waits_until(101.0)
    assert tally.recent(102.0, is_awaited=True) == pytest.approx((0.0, 0.5, 0.5, 0.0, 0.0))
    assert tally.recent(104.0, is_awaited=False).waiting <= 1.0


def test_shares_stay_shares_whatever_a_worker_says() -> None:
    tally = WorkerTally()
    tally.delivered(1, 1.7e308, 0.5)
    tally.delivered(1, 1.7e308, 0.5)
    for now in (1.0, 2.0, 30.0):
        found = tally.recent(now, is_awaited=False)
        assert all(0 <= each <= 1 for each in found[:4])


def test_the_step_waits_for_the_last_one_alone() -> None:
    stage = Stage(shards=4, steps=0, lease_timeout=600.0)
    stage.share("ann", "bob")
    assert len(stage.ranges_of("bob")) == 1
    stage.hello("olga", "observer")
    pages: list[Status] = []
    for _ in range(9):
        stage.now += 0.4
        stage.deliver("ann", stage.ranges_of("ann")[0], seconds=0.2)
        stage.now += 0.6
        stage.deliver("bob", stage.ranges_of("bob")[0], seconds=0.2)
        pages += sent(stage.server.handle(DeadlinePassed(), stage.now), Status, "olga")
    ann, bob = pages[-1].workers
    assert (ann.name, bob.name) == ("ann", "bob")
    assert (ann.straggling, bob.straggling) == pytest.approx((0.0, 0.6), abs=0.1)
    assert (ann.computing, ann.waiting) == pytest.approx((0.4, 0.6), abs=0.1)
    assert (bob.computing, bob.exchanging) == pytest.approx((0.4, 0.6), abs=0.1)
    assert isinstance(ann, WorkerStats)
    assert ann.speed == pytest.approx(2.0, abs=0.3)
    assert (ann.shard_seconds, bob.shard_seconds) == pytest.approx((0.2, 0.2), rel=0.3)
