"""Who holds which range: moved between steps only; and how long silence is borne."""

from hypothesis import given
from hypothesis import strategies as st

from manychar.numerics.tree_reduction import Range
from manychar.protocol.member import OWN_PEER, Member, PeerState
from manychar.protocol.membership import Lease, Membership
from manychar.protocol.messages import Unit, UnitState
from manychar.protocol.range_cut import runs_of
from manychar.protocol.worker_speed import MEASUREMENTS, WorkerSpeed
from tests.protocol.stage import hello


def working(membership: Membership, name: str, now: float = 0.0) -> Member:
    member = membership.admit(name.encode(), hello(name), None, now)
    member.state = PeerState.WORKING
    return member


def ranges(membership: Membership) -> dict[int, tuple[bytes, Range]]:
    """Return who holds which range, by the lease's number."""
    return {number: (lease.peer, lease.shards) for number, lease in membership.leases.items()}


def test_all_shards_go_to_the_first_worker_and_are_cut_between_two_steps() -> None:
    membership = Membership(5, silence=2.0)
    working(membership, "ann")
    membership.workers_changed()
    membership.lease_unheld(range(5))
    assert ranges(membership) == {1: (b"ann", (0, 4))}
    working(membership, "bob")
    membership.workers_changed()
    assert membership.lease_unheld(range(5)) == [], "somebody holds every shard"
    revoked, _ = membership.cut_anew(0.0)
    assert [lease.number for lease in revoked] == [1]
    assert ranges(membership) == {2: (b"ann", (0, 1)), 3: (b"bob", (2, 4))}
    assert membership.cut_anew(0.0) == ([], [])


def test_who_keeps_its_range_keeps_its_lease() -> None:
    membership = Membership(4, silence=2.0)
    working(membership, "ann")
    bob = working(membership, "bob")
    membership.workers_changed()
    membership.cut_anew(0.0)
    before = ranges(membership)
    membership.workers_changed()
    assert membership.cut_anew(0.0) == ([], [])
    assert ranges(membership) == before
    bob.state = PeerState.SILENT
    assert [lease.number for lease in membership.end_leases(bob.peer)] == [2]
    membership.lease_unheld([2, 3])
    bob.state = PeerState.WORKING
    membership.workers_changed()
    revoked, _ = membership.cut_anew(0.0)
    assert [lease.number for lease in revoked] == [3], "what ann held in addition"
    assert ranges(membership) == {1: (b"ann", (0, 1)), 4: (b"bob", (2, 3))}


def test_workers_keep_the_order_of_their_ranges() -> None:
    membership = Membership(8, silence=2.0)
    for name in ("ann", "bob"):
        working(membership, name)
    membership.lease((4, 7), b"ann")
    membership.lease((0, 3), b"bob")
    working(membership, "eve")
    membership.workers_changed()
    membership.cut_anew(0.0)
    order = sorted((shards, peer) for peer, shards in ranges(membership).values())
    assert [peer for _, peer in order] == [b"bob", b"ann", b"eve"]


@given(st.sets(st.integers(0, 19)), st.sets(st.integers(0, 19)), st.integers(0, 4))
def test_within_a_step_what_nobody_holds_is_leased_in_addition(
    missing: set[int], held: set[int], workers: int
) -> None:
    membership = Membership(20, silence=2.0)
    working(membership, "holder")
    before = [membership.lease(run, b"holder") for run in runs_of(held)]
    if not workers:
        membership.members[b"holder"].state = PeerState.SILENT
    for number in range(1, workers):
        working(membership, f"w{number}")
    new = membership.lease_unheld(missing)
    assert [membership.leases[each.number] for each in before] == before
    numbers = [shard for lease in new for shard in lease.numbers]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == (missing - held if workers else set())


def test_more_workers_than_shards_leave_some_without_a_range() -> None:
    membership = Membership(2, silence=2.0)
    for name in ("ann", "bob", "eve"):
        working(membership, name)
    membership.workers_changed()
    membership.cut_anew(0.0)
    assert ranges(membership) == {1: (b"ann", (0, 0)), 2: (b"bob", (1, 1))}


def test_a_holder_continues_with_what_it_computed_under_this_lease() -> None:
    membership = Membership(4, silence=2.0)
    working(membership, "ann")
    working(membership, "bob")
    lease = membership.lease((1, 3), b"ann")
    assert not membership.can_continue(lease, 1)
    membership.accepted([1, 2], b"ann", lease.number, 0)
    assert not membership.can_continue(lease, 1), "shard 3 is not of this lease"
    membership.accepted([3], b"ann", lease.number, 0)
    assert membership.can_continue(lease, 1)
    for peer, number in ((b"bob", lease.number), (b"ann", 99)):
        membership.accepted([2], peer, number, 0)
        assert not membership.can_continue(lease, 1)
        membership.accepted([2], b"ann", lease.number, 0)
    membership.end_lease(lease)
    assert not membership.can_continue(membership.lease((1, 3), b"ann"), 1), "another number"


def test_runs_are_the_contiguous_parts() -> None:
    assert runs_of([7, 1, 2, 3, 5, 8]) == [(1, 3), (5, 5), (7, 8)]
    assert runs_of([]) == []


# Speeds.


def at_speeds(*seconds: float | None, shards: int = 16) -> Membership:
    """Return a membership of workers that take so long for a shard, with their first ranges."""
    membership = Membership(shards, silence=2.0)
    for i, each in enumerate(seconds):
        member = working(membership, f"w{i}")
        if each is not None:
            member.speed.note(each)
    membership.workers_changed()
    membership.cut_anew(0.0)
    return membership


def shards_of(membership: Membership) -> list[Range | None]:
    held = {lease.peer: lease.shards for lease in membership.leases.values()}
    return [held.get(peer) for peer in membership.members]


def test_ranges_are_proportional_to_speeds() -> None:
    assert shards_of(at_speeds(1.0, 3.0)) == [(0, 11), (12, 15)]
    assert shards_of(at_speeds(None, 1.0)) == [(0, 7), (8, 15)], "unknown: as the others"
    assert shards_of(at_speeds(0.0, -1.0)) == [(0, 7), (8, 15)], "of a worker that says nonsense"


def test_ranges_move_for_a_gain_of_five_percent_and_once_a_second() -> None:
    membership = at_speeds(1.0, 1.0, shards=40)
    w1 = membership.members[b"w1"]
    w1.speed.note(1.2)  # 1.1 on average: a step of 22 now, and of 21 else
    assert membership.cut_anew(5.0) == ([], [])
    for _ in range(9):
        w1.speed.note(1.2)  # 1.18: of 23.6, and of 22
    assert membership.cut_anew(5.9) == ([], []), "looked at a second ago"
    membership.cut_anew(6.1)
    assert shards_of(membership) == [(0, 21), (22, 39)]


def test_a_speed_is_the_mean_of_the_last_twenty_units() -> None:
    speed = WorkerSpeed()
    assert speed.seconds_a_shard is None
    for seconds in [9.0, *[1.0] * 10, *[3.0] * 10]:
        speed.note(seconds)
    assert speed.seconds_a_shard == 2.0


def test_a_worker_that_only_costs_gets_nothing_and_comes_back_after_two_good_units() -> None:
    membership = at_speeds(1.0, None, shards=4)
    slow = membership.members[b"w1"]
    assert shards_of(membership) == [(0, 1), (2, 3)]
    slow.speed.note(9.0)
    _, too_slow = membership.cut_anew(2.0)
    assert too_slow == [slow], "said once"
    assert shards_of(membership) == [(0, 3), None]
    assert membership.cut_anew(4.0) == ([], [])
    now = 2.0
    for unit in (1, 2):
        now += 10.0
        assert membership.lease_duplicate({0, 1, 2, 3}, now - 0.1) is None, "every ten seconds"
        lease = membership.lease_duplicate({0, 1, 2, 3}, now)
        assert lease is not None
        assert (lease.peer, lease.shards) == (slow.peer, (0, 3)), "all that another computes"
        assert membership.lease_duplicate({0, 1, 2, 3}, now) is None
        slow.speed.note(1.0)
        revoked, _ = membership.cut_anew(now + 1)
        assert lease in revoked
        assert shards_of(membership) == ([(0, 3), None] if unit == 1 else [(0, 1), (2, 3)])


def test_a_worker_that_is_slow_again_stays_without_a_range() -> None:
    membership = at_speeds(1.0, None, shards=4)
    slow = membership.members[b"w1"]
    slow.speed.note(9.0)
    membership.cut_anew(2.0)
    now = 2.0
    for _ in range(4):
        now += 15.0
        assert membership.lease_duplicate({0, 1, 2, 3}, now) is not None
        slow.speed.note(8.0)
        assert membership.cut_anew(now + 1)[1] == [], "said once"
        assert shards_of(membership) == [(0, 3), None]


def test_more_workers_than_shards_are_no_slow_workers() -> None:
    membership = at_speeds(1.0, 1.0, 1.0, shards=2)
    assert not any(member.speed.is_too_slow for member in membership.members.values())
    membership.members[b"w2"].speed = WorkerSpeed()
    assert membership.lease_duplicate({0, 1}, 100.0) is None, "it never had a range"


def test_lost_shards_go_to_a_slow_worker_only_where_nobody_else_is_here() -> None:
    membership = at_speeds(1.0, 1.0, None, shards=4)
    slow = membership.members[b"w2"]
    for _ in range(MEASUREMENTS):
        slow.speed.note(9.0)
    membership.cut_anew(2.0)
    fast = [membership.members[peer] for peer in (b"w0", b"w1")]
    for member, holders in ((fast[0], {b"w1"}), (fast[1], {b"w2"})):
        member.state = PeerState.SILENT
        membership.end_leases(member.peer)
        assert {lease.peer for lease in membership.lease_unheld([0])} == holders, "of one shard"
        assert {lease.peer for lease in membership.lease_unheld(range(4))} <= holders


# Silence.


def test_the_limit_follows_the_slowest_piece_of_work() -> None:
    membership = Membership(1, silence=2.0)
    ann = working(membership, "ann")
    lease = membership.lease((0, 0), ann.peer)
    assert membership.limit(ann) == 2.0
    ann.longest_piece = 1.5
    assert membership.limit(ann) == 6.0
    membership.end_lease(lease)
    assert membership.limit(ann) == 20.0, "four heartbeats of a worker without a range"


def test_a_relay_has_the_limit_once_more_for_each_level_of_relays() -> None:
    """Each level below may wait so long before it takes a range from the next one."""
    membership = Membership(1, silence=2.0)
    rack = working(membership, "rack")
    membership.lease((0, 0), rack.peer)
    rack.levels = 3
    assert membership.limit(rack) == 4 * 2.0


def test_the_shards_of_many_lost_workers_go_to_as_many_others() -> None:
    membership = Membership(8, silence=2.0)
    for shard in range(8):
        working(membership, f"w{shard}")
        membership.lease((shard, shard), f"w{shard}".encode())
    for lost in (0, 2, 4, 6):
        membership.members[f"w{lost}".encode()].state = PeerState.SILENT
        membership.end_leases(f"w{lost}".encode())
    leased = membership.lease_unheld(range(8))
    assert sorted(lease.shards for lease in leased) == [(0, 0), (2, 2), (4, 4), (6, 6)]
    assert {lease.peer for lease in leased} == {b"w1", b"w3", b"w5", b"w7"}


def test_the_limit_doubles_with_each_takeover_of_the_worst_shard_of_what_is_held() -> None:
    membership = Membership(3, silence=2.0)
    ann, bob = working(membership, "ann"), working(membership, "bob")
    membership.lease((1, 1), ann.peer)
    limits = [membership.limit(ann)]
    for lost, next_one in ((ann, bob), (bob, ann), (ann, bob)):
        lost.state, next_one.state = PeerState.SILENT, PeerState.WORKING
        membership.end_leases(lost.peer)
        membership.lease((0, 2), next_one.peer)
        limits.append(membership.limit(next_one))
    assert limits == [2.0, 4.0, 8.0, 16.0]
    membership.accepted([1], ann.peer, 1, 0)
    assert membership.limit(bob) == 8.0, "shards 0 and 2 were taken over twice"
    membership.accepted([0, 2], ann.peer, 1, 0)
    assert membership.limit(bob) == 2.0


def test_leaving_in_good_order_is_no_takeover() -> None:
    membership = Membership(1, silence=2.0)
    ann, bob = working(membership, "ann"), working(membership, "bob")
    membership.lease((0, 0), ann.peer)
    membership.end_leases(ann.peer)
    membership.lease((0, 0), bob.peer)
    assert membership.limit(bob) == 2.0


def test_the_server_s_own_share_cannot_be_silent() -> None:
    membership = Membership(1, silence=2.0)
    own = working(membership, OWN_PEER.decode())
    assert membership.limit(own) == float("inf")


def test_the_time_to_the_next_grant_doubles_until_the_next_step() -> None:
    lease = Lease(number=1, shards=(0, 0), peer=b"a")
    waits = []
    for _ in range(8):
        lease.ask(3, 0.0)
        waits.append(lease.resend_after)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    lease.ask(4, 0.0)
    assert lease.resend_after == 1.0


def test_busy_is_who_has_the_unit_and_has_not_sent_it() -> None:
    membership = Membership(1, silence=2.0)
    ann = working(membership, "ann")
    ann.units = (Unit(1, 0, 2, 4, UnitState.QUEUED), Unit(1, 0, 2, 3, UnitState.SENT))
    assert ann.is_busy(1, 4)
    assert not ann.is_busy(1, 3)
    assert not ann.is_busy(2, 4)


def test_a_hello_takes_the_place_of_its_own_and_of_a_namesake() -> None:
    membership = Membership(1, silence=2.0)
    ann = working(membership, "ann")
    watcher = membership.admit(b"o", hello("ann", "observer"), None, 0.0)
    assert membership.predecessors(b"new", hello("ann")) == [ann]
    assert membership.predecessors(b"o", hello("olga", "observer")) == [watcher]
    assert membership.workers() == [ann]
    assert membership.observers() == [watcher]
