"""What the last worker of a step is late with is computed by an idle one, too."""

import math
from typing import Any

import pytest

from manychar.numerics.tree_reduction import Range
from manychar.protocol.effects import Effect
from manychar.protocol.events import DeadlinePassed
from manychar.protocol.late_workers import LATE, LATEST, LEAST_LATE, LEAST_LATEST, MEASURED_EVERY
from manychar.protocol.messages import Grant, NewWeights, Revoke
from tests.protocol.stage import Stage, said, sent
from tests.protocol.test_blame import heartbeat_of_relay, join_relay

SHARD = 0.05  # seconds


class Fleet(Stage):
    """Workers with two shards each, of which every one takes SHARD seconds."""

    def __init__(self, *names: str, **operation: Any) -> None:
        super().__init__(shards=2 * len(names), steps=0, lease_timeout=600.0, **operation)
        self.share(*names)

    def step(self, *names: str, took: float = 2 * SHARD) -> list[Effect]:
        """Let these workers deliver their units, when they have taken that long."""
        self.now += took
        effects: list[Effect] = []
        for name in names:
            effects = self.deliver(name, self.ranges_of(name)[0], seconds=SHARD)
        return effects

    def tick(self, now: float) -> list[Effect]:
        self.now = now
        return self.server.handle(DeadlinePassed(), now)

    def helped(self, now: float) -> list[Range]:
        """Return what ann is granted when the deadline of that time has passed."""
        return [(each.first, each.last) for each in sent(self.tick(now), Grant, "ann")]


@pytest.fixture
def fleet() -> Fleet:
    """Return two workers that were measured, at the beginning of a step."""
    fleet = Fleet("ann", "bob")
    fleet.step("ann", "bob")
    return fleet


def test_the_last_one_is_late_when_it_takes_much_longer_than_the_others(fleet: Fleet) -> None:
    began = fleet.now
    assert fleet.server.lease_grants.late_workers.due == math.inf, "nobody has delivered yet"
    fleet.step("ann")
    due = began + LATE * 2 * SHARD
    fleet.tick(due - 0.02)
    assert fleet.server.deadline() == pytest.approx(due)
    assert fleet.helped(due - 0.01) == []
    assert fleet.helped(due) == [(2, 3)]
    assert fleet.helped(due + 0.2) == [], "once a step"
    assert [each.shards for each in fleet.server.status_report.pages(fleet.now)[0].workers] == [
        2,
        2,
    ]


def test_its_result_ends_the_step_and_what_comes_late_is_compared(fleet: Fleet) -> None:
    step = fleet.server.state.step
    fleet.step("ann")
    fleet.tick(fleet.now + 1.0)
    lease = fleet.leases("ann")[1]
    effects = fleet.deliver("ann", (2, 3), seconds=SHARD)
    assert fleet.server.state.step == step + 1
    assert [each.lease for each in sent(effects, Revoke, "ann")] == [lease]
    assert [each.shards for each in sent(effects, NewWeights, "ann")] == [(0, 1)]
    assert [each.shards for each in sent(effects, Grant, "bob")] == [(2, 3)], "with hidden states"
    assert fleet.member("bob").tally.straggling == pytest.approx(1.0)
    assert not fleet.member("ann").tally.straggling
    fleet.deliver("bob", (2, 3), step, seconds=9.0)
    assert fleet.server.counts == {"units_repeated": 1}
    assert fleet.member("bob").speed.seconds_a_shard == pytest.approx(SHARD), "it stood still"


def test_the_first_result_counts(fleet: Fleet) -> None:
    fleet.step("ann")
    fleet.tick(fleet.now + 1.0)
    effects = fleet.step("bob")
    assert [each.shards for each in sent(effects, NewWeights, "bob")] == [(2, 3)]
    assert len(sent(effects, Revoke, "ann")) == 1
    assert fleet.member("bob").late_since == math.inf


def test_one_that_stands_still_is_not_waited_for_again(fleet: Fleet) -> None:
    fleet.step("ann")
    fleet.tick(fleet.now + 1.0)
    fleet.deliver("ann", (2, 3), seconds=SHARD)
    for _ in range(3):
        fleet.step("ann")
        assert fleet.server.deadline() == fleet.now
        assert fleet.helped(fleet.now) == [(2, 3)]
        fleet.deliver("ann", (2, 3), seconds=SHARD)
    fleet.step("ann", "bob")
    fleet.step("ann")
    assert fleet.helped(fleet.now) == [], "it has delivered its unit of the step before"


def test_one_that_has_become_slow_is_measured_again(fleet: Fleet) -> None:
    fleet.step("ann")
    fleet.tick(fleet.now + 1.0)
    fleet.deliver("ann", (2, 3), seconds=SHARD)
    fleet.step("ann", took=MEASURED_EVERY)
    fleet.tick(fleet.now)
    fleet.deliver("ann", (2, 3), seconds=SHARD)
    began = fleet.now
    fleet.step("ann")
    assert fleet.helped(fleet.now) == []
    due = began + max(LEAST_LATEST, LATEST * 2 * SHARD)
    assert fleet.helped(due - 0.01) == []
    fleet.deliver("bob", (2, 3), seconds=0.4)
    assert fleet.member("bob").speed.units == [0.4]


def test_one_that_was_never_measured_is_given_time_and_its_silence_is_its_speed() -> None:
    fleet = Fleet("ann", "bob")
    began = fleet.now
    fleet.step("ann")
    due = began + max(LEAST_LATEST, LATEST * 2 * SHARD)
    assert fleet.helped(due - 0.01) == []
    assert fleet.helped(due) == [(2, 3)]
    effects = fleet.deliver("ann", (2, 3), seconds=SHARD)
    text = f"bob takes {(due - began) / 2:.3g} s for a shard: it gets none"
    assert text in said(effects)
    assert fleet.ranges_of("bob") == []


def test_a_short_step_is_no_reason_for_haste() -> None:
    fleet = Fleet("ann", "bob")
    fleet.now += 0.001
    for name in ("ann", "bob"):
        fleet.deliver(name, fleet.ranges_of(name)[0], seconds=0.0005)
    began = fleet.now
    fleet.now += 0.001
    fleet.deliver("ann", (0, 1), seconds=0.0005)
    assert fleet.helped(began + 0.9 * LEAST_LATE) == []
    assert fleet.helped(began + LEAST_LATE) == [(2, 3)]


def test_one_that_is_known_to_take_longer_is_given_its_time(fleet: Fleet) -> None:
    fleet.now += 0.6
    fleet.deliver("bob", (2, 3), seconds=0.3)
    fleet.deliver("ann", (0, 1), seconds=SHARD)
    began, known = fleet.now, fleet.member("bob").speed.seconds_a_shard
    assert known
    fleet.step("ann")
    assert fleet.helped(began + LATE * 2 * known - 0.01) == []
    assert fleet.helped(began + LATE * 2 * known) == [(2, 3)]


def test_only_few_can_be_late() -> None:
    """Where half of the workers are late, a network may be slow: more messages make it slower."""
    fleet = Fleet("ann", "bob", "eve")
    fleet.step("ann", "bob", "eve")
    fleet.step("ann")
    assert fleet.helped(fleet.now + 9.0) == []
    fleet.deliver("eve", (4, 5), seconds=SHARD)
    assert fleet.helped(fleet.now + 18.0) == [(2, 3)]


def test_the_fastest_idle_worker_computes_it() -> None:
    fleet = Fleet("eve", "bob", "ann")
    fleet.now += 4 * SHARD
    fleet.deliver("eve", (0, 1), seconds=2 * SHARD)
    fleet.deliver("bob", (2, 3), seconds=SHARD)
    fleet.deliver("ann", (4, 5), seconds=SHARD / 2)
    fleet.step("eve", "ann")
    assert fleet.helped(fleet.now + 9.0) == [(2, 3)]
    assert fleet.ranges_of("eve") == [(0, 1)]


def test_relays_see_to_their_own_workers() -> None:
    stage = Stage(shards=4, steps=0, lease_timeout=600.0)
    for name in ("r", "s"):
        join_relay(stage, name, workers=1)
    stage.deliver("r", (0, 3), seconds=SHARD)
    for _ in range(2):
        stage.now += 2 * SHARD
        stage.deliver("r", (0, 1), seconds=SHARD)
        stage.tell("r", heartbeat_of_relay(1))
        assert not sent(stage.server.handle(DeadlinePassed(), stage.now + 1.0), Grant, "r")
        stage.deliver("s", (2, 3), seconds=SHARD)
