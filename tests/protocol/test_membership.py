"""Who holds which shard: evenly spread, few moved; and how long silence is borne."""

import collections

from hypothesis import given
from hypothesis import strategies as st

from manychar.protocol.membership import Lease, Member, Membership, PeerState, spread
from manychar.protocol.messages import Unit, UnitState
from tests.protocol.stage import hello

PEERS = [b"p%d" % number for number in range(9)]


@st.composite
def spreads(draw: st.DrawFn) -> tuple[int, dict[int, bytes], list[bytes]]:
    """A number of shards, who holds some of them, and who can work."""
    shards = draw(st.integers(1, 20))
    holders = draw(st.dictionaries(st.integers(0, shards - 1), st.sampled_from(PEERS)))
    workers = draw(st.lists(st.sampled_from(PEERS), unique=True))
    return shards, holders, workers


@given(spreads())
def test_every_shard_has_one_worker_and_the_loads_differ_by_one_at_most(
    case: tuple[int, dict[int, bytes], list[bytes]],
) -> None:
    shards, holders, workers = case
    held = spread(shards, holders, workers)
    if not workers:
        assert held == {}
        return
    assert sorted(held) == list(range(shards))
    loads = collections.Counter(held.values())
    counts = [loads[worker] for worker in workers]
    assert set(loads) <= set(workers)
    assert max(counts) - min(counts) <= 1


@given(spreads())
def test_no_even_spread_moves_fewer_shards(case: tuple[int, dict[int, bytes], list[bytes]]) -> None:
    shards, holders, workers = case
    held = spread(shards, holders, workers)
    if workers:
        before = collections.Counter(peer for peer in holders.values() if peer in workers)
        smallest, larger = divmod(shards, len(workers))
        kept = sum(min(before[worker], smallest) for worker in workers)
        kept += min(larger, sum(before[worker] > smallest for worker in workers))
        assert sum(held[shard] == peer for shard, peer in holders.items()) == kept
    assert spread(shards, held, workers) == held


def test_a_worker_keeps_its_lowest_shards() -> None:
    holders = dict.fromkeys(range(4), b"a")
    assert spread(4, holders, [b"a", b"b"]) == {0: b"a", 1: b"a", 2: b"b", 3: b"b"}


def working(membership: Membership, name: str, now: float = 0.0) -> Member:
    member = membership.admit(name.encode(), hello(name), None, now)
    member.state = PeerState.WORKING
    return member


def test_a_change_names_what_is_revoked_and_what_is_given() -> None:
    membership = Membership(2, silence=2.0)
    ann = working(membership, "ann")
    assert [lease.shard for lease in membership.rebalance()[1]] == [0, 1]
    bob = working(membership, "bob")
    revoked, given = membership.rebalance()
    assert [(lease.number, lease.shard, lease.peer) for lease in revoked] == [(2, 1, ann.peer)]
    assert [(lease.number, lease.shard, lease.peer) for lease in given] == [(3, 1, bob.peer)]
    assert membership.rebalance() == ([], [])


def test_the_limit_follows_the_slowest_piece_of_work() -> None:
    membership = Membership(1, silence=2.0)
    ann = working(membership, "ann")
    assert membership.limit(ann) == 2.0
    ann.slowest = 1.5
    assert membership.limit(ann) == 6.0


def test_the_limit_doubles_with_each_takeover_of_the_same_step() -> None:
    membership = Membership(1, silence=2.0)
    ann, bob = working(membership, "ann"), working(membership, "bob")
    membership.rebalance()
    limits = [membership.limit(ann)]
    for lost, next_one in ((ann, bob), (bob, ann), (ann, bob)):
        lost.state, next_one.state = PeerState.SILENT, PeerState.WORKING
        membership.rebalance()
        limits.append(membership.limit(next_one))
    assert limits == [2.0, 4.0, 8.0, 16.0]
    membership.accepted(0, ann.peer)
    assert membership.limit(bob) == 2.0


def test_the_time_to_the_next_grant_doubles_until_the_next_step() -> None:
    lease = Lease(number=1, shard=0, peer=b"a")
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
    ann.units = (Unit(1, 0, 4, UnitState.QUEUED), Unit(1, 0, 3, UnitState.SENT))
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
