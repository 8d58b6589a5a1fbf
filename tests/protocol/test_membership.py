"""Who holds which range: moved between steps only; and how long silence is borne."""

from hypothesis import given
from hypothesis import strategies as st

from manychar.numerics.tree_reduction import Range
from manychar.protocol.membership import OWN_PEER, Lease, Member, Membership, PeerState, runs_of
from manychar.protocol.messages import Unit, UnitState
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
    membership.come()
    membership.lease_unheld(range(5))
    assert ranges(membership) == {1: (b"ann", (0, 4))}
    working(membership, "bob")
    membership.come()
    assert membership.lease_unheld(range(5)) == [], "somebody holds every shard"
    revoked, given_out = membership.cut_anew()
    assert [lease.number for lease in revoked] == [1]
    assert [lease.number for lease in given_out] == [2, 3]
    assert ranges(membership) == {2: (b"ann", (0, 1)), 3: (b"bob", (2, 4))}
    assert membership.cut_anew() == ([], [])


def test_who_keeps_its_range_keeps_its_lease() -> None:
    membership = Membership(4, silence=2.0)
    working(membership, "ann")
    bob = working(membership, "bob")
    membership.come()
    membership.cut_anew()
    before = ranges(membership)
    membership.come()
    assert membership.cut_anew() == ([], [])
    assert ranges(membership) == before
    bob.state = PeerState.SILENT
    assert [lease.number for lease in membership.end_leases(bob.peer)] == [2]
    membership.lease_unheld([2, 3])
    bob.state = PeerState.WORKING
    membership.come()
    revoked, _ = membership.cut_anew()
    assert [lease.number for lease in revoked] == [3], "what ann held in addition"
    assert ranges(membership) == {1: (b"ann", (0, 1)), 4: (b"bob", (2, 3))}


def test_workers_keep_the_order_of_their_ranges() -> None:
    membership = Membership(8, silence=2.0)
    for name in ("ann", "bob"):
        working(membership, name)
    membership.lease((4, 7), b"ann")
    membership.lease((0, 3), b"bob")
    working(membership, "eve")
    membership.come()
    membership.cut_anew()
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
    membership.come()
    membership.cut_anew()
    assert ranges(membership) == {1: (b"ann", (0, 0)), 2: (b"bob", (1, 1))}


def test_a_holder_continues_with_what_it_computed_under_this_lease() -> None:
    membership = Membership(4, silence=2.0)
    working(membership, "ann")
    working(membership, "bob")
    lease = membership.lease((1, 3), b"ann")
    assert not membership.can_continue(lease)
    membership.accepted([1, 2], b"ann", lease.number)
    assert not membership.can_continue(lease), "shard 3 is not of this lease"
    membership.accepted([3], b"ann", lease.number)
    assert membership.can_continue(lease)
    for peer, number in ((b"bob", lease.number), (b"ann", 99)):
        membership.accepted([2], peer, number)
        assert not membership.can_continue(lease)
        membership.accepted([2], b"ann", lease.number)
    membership.leases.pop(lease.number)
    assert not membership.can_continue(membership.lease((1, 3), b"ann")), "another number"


def test_runs_are_the_contiguous_parts() -> None:
    assert runs_of([7, 1, 2, 3, 5, 8]) == [(1, 3), (5, 5), (7, 8)]
    assert runs_of([]) == []


def test_the_limit_follows_the_slowest_piece_of_work() -> None:
    membership = Membership(1, silence=2.0)
    ann = working(membership, "ann")
    assert membership.limit(ann) == 2.0
    ann.slowest = 1.5
    assert membership.limit(ann) == 6.0


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
    membership.accepted([1], ann.peer, 1)
    assert membership.limit(bob) == 8.0, "shards 0 and 2 were taken over twice"
    membership.accepted([0, 2], ann.peer, 1)
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
