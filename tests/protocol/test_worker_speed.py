"""Ranges follow the workers' speeds: when they move, when they stay, and who gets none."""

import itertools
import random
from collections.abc import Callable, Mapping

import pytest

from manychar.numerics.tree_reduction import Range
from manychar.protocol.events import DeadlinePassed
from manychar.protocol.member import PeerState
from manychar.protocol.membership import MOVE_EVERY, Membership
from manychar.protocol.messages import Grant, Revoke
from manychar.protocol.worker_speed import MEASURE_EVERY, MEASUREMENTS, UNITS_MEASURED, WorkerSpeed
from manychar.protocol.worker_tally import WorkerTally
from tests.protocol.stage import Stage, hello, said, sent
from tests.protocol.test_blame import heartbeat_of_relay, join_relay

SHARDS = 16
LATENCY = 1e-4
TURNS = "olga"  # a worker that is stopped most of the time, and as fast as the others else
Seconds = Mapping[str, float]


class Fleet:
    """Workers that take their time for each shard, on a clock of their own."""

    def __init__(self, *names: str, shards: int = SHARDS) -> None:
        self.now = 0.0
        self.shards = shards
        self.membership = Membership(shards, silence=2.0)
        self.applied: list[float] = []
        self.moved: list[float] = []
        self.too_slow: list[str] = []
        for name in names:
            self.come(name)

    def come(self, name: str) -> None:
        member = self.membership.admit(name.encode(), hello(name), None, self.now)
        member.state = PeerState.WORKING
        self.membership.workers_changed()
        self.membership.lease_unheld(range(self.shards))

    def speed(self, name: str) -> WorkerSpeed:
        return self.membership.members[name.encode()].speed

    def ranges(self) -> dict[str, Range]:
        leases = sorted(self.membership.leases.values(), key=lambda lease: lease.shards)
        return {lease.peer.decode(): lease.shards for lease in leases if not lease.duplicate}

    def counts(self) -> list[int]:
        return [last - first + 1 for first, last in self.ranges().values()]

    def step(self, seconds: Seconds) -> None:
        """Let every holder compute its ranges once, a duplicate in vain, and cut the ranges."""
        took = [0.0]
        for lease in self.membership.leases.values():
            name, count = lease.peer.decode(), len(lease.numbers)
            each = self.in_turns(count * seconds[name]) / count if name == TURNS else seconds[name]
            self.speed(name).note(each)
            if not lease.duplicate:
                took.append(count * each)
        self.now += max(took) + LATENCY
        self.applied.append(self.now)
        before = self.ranges()
        _, too_slow = self.membership.cut_anew(self.now)
        self.too_slow += [each.name for each in too_slow]
        if self.ranges() != before:
            self.moved.append(self.now)
        assert sorted(self.numbers()) == list(range(self.shards))

    def in_turns(self, work: float) -> float:
        """Return how long some work takes that goes on for 20 ms, and stands still for 80 ms."""
        phase = self.now % 0.1
        turns, rest = divmod(min(phase, 0.02) + work, 0.02)
        return turns * 0.1 + rest - phase

    def numbers(self) -> list[int]:
        return [i for first, last in self.ranges().values() for i in range(first, last + 1)]

    def train(self, until: float, seconds: Seconds | Callable[[], Seconds]) -> None:
        while self.now < until:
            self.membership.lease_duplicate({*range(self.shards)}, self.now)
            self.step(seconds() if callable(seconds) else seconds)

    def shards_a_second(self, since: float) -> float:
        return self.shards * sum(each > since for each in self.applied) / (self.now - since)


def sum_of_speeds(seconds: Seconds) -> float:
    return sum(1 / each for each in seconds.values())


@pytest.mark.parametrize(
    "seconds",
    [
        {"ann": 0.002, "bob": 0.01},
        {"ann": 0.01, "bob": 0.002},
        {"ann": 0.002, "bob": 0.003},
        {"ann": 0.002, "bob": 0.01, "eve": 0.004},
    ],
)
def test_stragglers_leave_most_of_the_speed(seconds: Seconds) -> None:
    fleet = Fleet(*seconds)
    fleet.train(10.0, seconds)
    fleet.train(13.0, seconds)
    assert fleet.shards_a_second(since=10.0) >= 0.85 * sum_of_speeds(seconds)
    assert fleet.moved[-1] < 3.0, "they come to rest"
    assert not fleet.too_slow


@pytest.mark.parametrize("seconds", [0.0005, 0.002, 0.02, 0.1])
def test_a_worker_that_is_stopped_most_of_the_time(seconds: float) -> None:
    """With short steps, each turn holds up a step, however small its range is."""
    both = {"ann": seconds, TURNS: seconds}
    fleet = Fleet(*both)
    fleet.train(10.0, both)
    fleet.train(20.0, both)
    assert fleet.shards_a_second(since=10.0) >= 0.8 * 1.2 / seconds


def test_a_worker_that_becomes_slow_and_fast_again() -> None:
    both = {"ann": 0.002, "bob": 0.002}
    fleet = Fleet("ann", "bob")
    fleet.train(3.0, both)
    assert fleet.counts() == [8, 8]
    fleet.train(6.0, both | {"ann": 0.01})
    assert fleet.ranges() == {"ann": (0, 1), "bob": (2, 15)}
    fleet.train(9.0, both)
    assert fleet.counts() == [8, 8]


def test_at_most_one_move_a_second() -> None:
    chance = random.Random(1)  # noqa: S311 - speeds, not secrets
    fleet = Fleet("ann", "bob", "eve")
    fleet.step({"ann": 1e-3, "bob": 1e-3, "eve": 1e-3})
    del fleet.moved[:]

    def fickle() -> Seconds:
        slow = chance.choice(("ann", "bob", "eve"))
        if chance.random() < 0.05:
            fleet.membership.workers_changed()  # as when a duplicate ends
        return {name: 8e-3 if name == slow else 1e-3 for name in ("ann", "bob", "eve")}

    fleet.train(30.0, fickle)
    assert len(fleet.moved) > 5
    pauses = [later - earlier for earlier, later in itertools.pairwise(fleet.moved)]
    assert min(pauses) >= MOVE_EVERY


def test_a_worker_that_only_costs_gets_none_until_it_was_fast_twice() -> None:
    slow = {"ann": 0.002, "bob": 0.2}
    fleet = Fleet("ann", "bob")
    fleet.train(15.0, slow)
    assert fleet.ranges() == {"ann": (0, 15)}
    assert fleet.too_slow == ["bob"]
    assert fleet.shards_a_second(since=10.0) >= 0.85 * sum_of_speeds(slow)
    fleet.train(60.0, slow)
    assert fleet.ranges() == {"ann": (0, 15)}
    assert fleet.too_slow == ["bob"], "it is said once"
    fleet.train(60.0 + MEASURE_EVERY, {"ann": 0.002, "bob": 0.002})
    assert fleet.ranges() == {"ann": (0, 15)}, "once is not enough"
    fleet.train(61.0 + MEASUREMENTS * MEASURE_EVERY, {"ann": 0.002, "bob": 0.002})
    assert fleet.counts() == [8, 8]


def test_a_duplicate_is_the_smallest_unit_and_ends_with_the_step() -> None:
    seconds = {"ann": 0.002, "bob": 0.2, "eve": 0.004}
    fleet = Fleet(*seconds)
    fleet.train(5.0, seconds)
    assert fleet.ranges().keys() == {"ann", "eve"}
    fleet.now += MEASURE_EVERY
    lease = fleet.membership.lease_duplicate({*range(SHARDS)}, fleet.now)
    assert lease is not None
    assert (lease.peer, lease.shards) == (b"bob", fleet.ranges()["eve"])
    assert fleet.membership.lease_duplicate({*range(SHARDS)}, fleet.now) is None, "one at a time"
    before = fleet.ranges()
    revoked, _ = fleet.membership.cut_anew(fleet.now)
    assert revoked == [lease]
    assert fleet.ranges() == before


def test_a_worker_that_lost_its_range_to_a_faster_one_is_measured_again() -> None:
    """Also where there are as many others as shards."""
    everyone = dict.fromkeys(("ann", "bob", "eve", "ian", "joe"), 0.01)
    fleet = Fleet(*everyone, shards=4)
    fleet.train(3.0, everyone)
    fleet.train(8.0, everyone | {"ann": 0.5})
    assert fleet.ranges().keys() == everyone.keys() - {"ann"}
    fleet.train(8.0 + MEASUREMENTS * MEASURE_EVERY, everyone)
    fleet.train(fleet.now + 3.0, everyone | {"bob": 0.02})
    assert fleet.ranges().keys() == everyone.keys() - {"bob"}
    assert not fleet.too_slow, "more shards would give it a range"


def test_a_worker_that_is_as_fast_as_the_others_again_is_too_slow_no_more() -> None:
    seconds = {"ann": 0.01, "bob": 0.01, "eve": 0.1}
    fleet = Fleet(*seconds, shards=4)
    long_enough = (MEASUREMENTS + 1) * MEASURE_EVERY
    fleet.train(long_enough, seconds)
    assert fleet.too_slow == ["eve"]
    fleet.train(2 * long_enough, seconds | {"eve": 0.01})
    assert fleet.ranges() == {"ann": (0, 1), "bob": (2, 3)}, "no step needs it"
    assert not fleet.speed("eve").is_too_slow


def test_a_worker_that_never_had_a_range_gets_one_after_two_good_units() -> None:
    seconds = {"ann": 0.01, "bob": 0.01, "eve": 0.3}
    fleet = Fleet("ann", "bob", shards=4)
    fleet.train(3.0, seconds)
    fleet.come("eve")
    fleet.train(28.0, seconds)
    assert fleet.ranges() == {"ann": (0, 1), "bob": (2, 3)}
    fleet.train(fleet.now + MEASUREMENTS * MEASURE_EVERY + 2 * MOVE_EVERY, seconds | {"eve": 0.001})
    assert "eve" in fleet.ranges()


@pytest.mark.parametrize(("shards", "relays"), [(2, 3), (4, 3), (4, 5), (64, 3)])
def test_equal_relays_keep_their_ranges(shards: int, relays: int) -> None:
    """A relay without a range is tried again now and then; no range moves for that."""
    seconds = {f"r{i}": 0.01 for i in range(relays)}
    fleet = Fleet(*seconds, shards=shards)
    for name in seconds:
        fleet.membership.members[name.encode()].is_relay = True
    fleet.train(3.0, seconds)
    fleet.moved.clear()
    while fleet.now < 40.0:
        for name in seconds:
            if fleet.speed(name).is_due(fleet.now):
                fleet.speed(name).note_range()
                fleet.membership.workers_changed()
        fleet.train(fleet.now + 0.5, seconds)
    assert len(fleet.ranges()) == min(shards, relays)
    assert not fleet.moved


@pytest.mark.parametrize(("shards", "slow"), [(4, 8.0), (4, 20.0), (8, 20.0), (16, 40.0)])
def test_a_new_worker_gets_a_range_beside_one_that_is_too_slow(shards: int, slow: float) -> None:
    seconds = {"ann": 0.01, "bob": 0.01 * slow, "eve": 0.01}
    fleet = Fleet("ann", "bob", shards=shards)
    fleet.train(5.0 + (MEASUREMENTS + 1) * MEASURE_EVERY, seconds)
    assert fleet.ranges() == {"ann": (0, shards - 1)}
    fleet.come("eve")
    fleet.step(seconds)
    assert fleet.counts() == [shards // 2, shards // 2]


def test_a_duplicate_takes_what_is_left_of_a_range() -> None:
    fleet = Fleet("ann", "bob")
    fleet.train(5.0, {"ann": 0.002, "bob": 0.2})
    assert fleet.ranges() == {"ann": (0, 15)}
    fleet.now += MEASURE_EVERY
    lease = fleet.membership.lease_duplicate({*range(1, SHARDS)}, fleet.now)
    assert lease is not None
    assert (lease.peer, lease.shards) == (b"bob", (0, 15))


def test_who_is_slow_and_alone_computes_all() -> None:
    fleet = Fleet("ann", "bob")
    fleet.train(5.0, {"ann": 0.002, "bob": 0.2})
    assert fleet.too_slow == ["bob"]
    fleet.membership.members.pop(b"ann")
    fleet.membership.end_leases(b"ann")
    fleet.membership.lease_unheld(range(SHARDS))
    assert fleet.ranges() == {"bob": (0, 15)}
    fleet.step({"bob": 0.2})
    assert not fleet.speed("bob").is_too_slow
    fleet.come("ann")
    fleet.train(fleet.now + 5.0, {"ann": 0.2, "bob": 0.2})
    assert sorted(fleet.counts()) == [8, 8]


@pytest.mark.parametrize("seconds", [1.7e308, 0.0, -1.0, 1e-320])
def test_whatever_a_worker_says_of_its_speed_there_is_a_cut(seconds: float) -> None:
    for others in (seconds, 0.002):
        fleet = Fleet("ann", "bob", "eve")
        said = {"ann": seconds, "bob": others, "eve": seconds}
        for _ in range(UNITS_MEASURED):
            for name, each in said.items():
                fleet.speed(name).note(each)
        fleet.now = 1e6
        fleet.membership.cut_anew(fleet.now)
        assert sorted(fleet.numbers()) == list(range(SHARDS))


def test_a_worker_that_gets_no_range_is_named_and_measured_again() -> None:
    stage = Stage(shards=4, steps=0, lease_timeout=600.0)
    stage.share("ann", "bob")
    (fast,), (slow,) = stage.ranges_of("ann"), stage.ranges_of("bob")
    (lease,) = stage.leases("bob")
    stage.deliver("ann", fast, seconds=0.01)
    stage.now += 2.0
    effects = stage.deliver("bob", slow, seconds=1.0)
    assert "bob takes 1 s for a shard: it gets none, a step without it is shorter" in said(effects)
    assert [revoke.lease for revoke in sent(effects, Revoke, "bob")] == [lease]
    assert stage.ranges_of("ann") == [(0, 3)]
    assert not stage.ranges_of("bob")
    stage.now += MEASURE_EVERY
    (grant,) = sent(stage.server.handle(DeadlinePassed(), stage.now), Grant, "bob")
    assert (grant.first, grant.last) == (0, 3)
    bob = stage.member("bob")
    stage.now += 3.0
    (page,) = stage.server.status_report.pages(stage.now)
    (row,) = (worker for worker in page.workers if worker.name == "bob")
    assert row.computing == pytest.approx((2.0 + 3.0) / 15.0), "its unit, and now the duplicate"
    assert row.waiting == pytest.approx(10.0 / 15.0)
    effects = stage.deliver("ann", (0, 3), seconds=0.01)
    assert [revoke.lease for revoke in sent(effects, Revoke, "bob")] == [grant.lease]
    before = bob.tally.computing
    for _ in range(MEASUREMENTS):  # its message comes twice
        repeat = stage.deliver(
            *("bob", (0, 3), stage.server.state.step - 1), lease=grant.lease, seconds=0.01
        )
        assert not said(repeat)
    assert stage.server.counts["units_repeated"] == MEASUREMENTS
    assert bob.speed.awaits_measurement, "it was measured once"
    assert bob.tally.computing == pytest.approx(before + 4 * 0.01)
    assert stage.server.counts["ranges_moved"] == 1


@pytest.mark.parametrize("shards", [2, 4])
def test_a_worker_that_no_step_needs_is_measured_at_once_and_takes_the_place_of_a_slower_one(
    shards: int,
) -> None:
    stage, half = Stage(shards=shards, steps=0), shards // 2
    ranges = {"ann": (0, half - 1), "bob": (half, shards - 1)}
    stage.join("ann", "bob")
    stage.deliver("ann", (0, shards - 1), seconds=0.1)
    stage.join("eve")

    def deliver_all() -> None:
        for name, of_name in ranges.items():
            stage.deliver(name, of_name, seconds=0.1)

    deliver_all()
    for _ in range(MEASUREMENTS):
        assert [stage.ranges_of(each) for each in ranges] == [[each] for each in ranges.values()]
        assert not stage.member("eve").speed.is_too_slow, "a step with two ranges is as short"
        effects = stage.server.handle(DeadlinePassed(), stage.now)
        (grant,) = sent(effects, Grant, "eve")
        stage.deliver("eve", (grant.first, grant.last), seconds=0.01)
        stage.now += MEASURE_EVERY
        deliver_all()
    assert stage.ranges_of("eve")


@pytest.mark.parametrize(
    ("workers", "seconds", "later"),
    [(1, 0.1, 0.0), (99, 1.0, MEASURE_EVERY)],
    ids=["it has more workers now", "a while ago"],
)
def test_a_relay_that_was_too_slow_is_tried_again(
    workers: int, seconds: float, later: float
) -> None:
    stage = Stage(shards=4, steps=0, lease_timeout=600.0)
    join_relay(stage, "r", workers=workers)
    join_relay(stage, "s", workers=99)
    effects = stage.deliver("r", (0, 3), seconds=seconds)
    if stage.ranges_of("r"):
        stage.now += MOVE_EVERY
        stage.deliver("s", stage.ranges_of("s")[0], seconds=0.01)
        effects = stage.deliver("r", stage.ranges_of("r")[0], seconds=seconds)
    assert f"r takes {seconds} s for a shard: it gets none".replace(".0 s", " s") in said(effects)
    stage.now += later
    effects = stage.server.handle(DeadlinePassed(), stage.now)
    assert not sent(effects, Grant, "r"), "it would be too late with a duplicate"
    stage.tell("r", heartbeat_of_relay(99))
    stage.now += MOVE_EVERY
    stage.deliver("s", (0, 3), seconds=0.01)
    assert stage.ranges_of("r")


def test_ranges_are_cut_anew_where_a_relay_has_more_or_fewer_workers() -> None:
    fleet = Fleet("ann", "bob", shards=49)
    for name in ("ann", "bob"):
        member = fleet.membership.members[name.encode()]
        member.is_relay, member.workers = True, 25
        member.speed.note(1e-3)
    for workers, ranges in ((24, [(0, 24), (25, 48)]), (25, [(0, 23), (24, 48)])):
        fleet.membership.members[b"bob"].workers = workers
        fleet.membership.workers_changed()
        fleet.membership.cut_anew(0.0)
        assert sorted(each.shards for each in fleet.membership.leases.values()) == ranges


def test_shares_stay_shares_whatever_a_worker_says() -> None:
    tally = WorkerTally()
    for second in (1.0, 2.0, 30.0):
        tally.delivered(1, 1.7e308, second)
        found = tally.recent(second + 0.5, expected=0.0)
        assert all(0 <= each <= 1 for name, each in found.items() if name != "shards_per_second")


@pytest.mark.parametrize("every", [0.5, 1.0, 4.0])
def test_shares_are_of_ten_seconds_however_rarely_they_are_asked_for(every: float) -> None:
    tally, now = WorkerTally(), 0.0
    while now < 40.0:
        now += every
        tally.delivered(1, 0.0 if now > 20.0 else every, now)
        found = tally.recent(now, expected=0.0)
    assert found["computing"] == 0.0, "that was 20 seconds ago"
