"""How the shards are cut into one range a worker."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manychar.numerics.tree_reduction import Range, cover
from manychar.protocol import range_cut
from manychar.protocol.range_cut import WAYS, cut, shards_named, shortest_step

AS_GOOD = 1.02  # the design: cuts within 2 % are as good as the best
SECONDS = st.one_of(st.floats(1e-4, 1e2), st.sampled_from([0.5, 1.0, 1.01, 2.0, 5.0]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Range, list[float]]:
    """Contiguous shards, and the workers' seconds for one shard."""
    first = draw(st.integers(0, 40))
    last = first + draw(st.integers(0, 70))
    return (first, last), draw(st.lists(SECONDS, min_size=1, max_size=9))


def shortest(count: int, seconds: Sequence[float]) -> float:
    """Return the shortest step possible: the least time in which all shards can be computed."""
    times = sorted(each * n for each in seconds for n in range(1, count + 1))
    return next(t for t in times if sum(math.floor(t / each + 1e-9) for each in seconds) >= count)


def sizes(ranges: Sequence[Range | None]) -> list[int]:
    return [0 if each is None else each[1] - each[0] + 1 for each in ranges]


@given(st.integers(1, 70), st.lists(SECONDS, min_size=1, max_size=9))
def test_the_shortest_step(count: int, seconds: list[float]) -> None:
    alone = [1] * len(seconds)
    assert shortest_step(count, seconds, alone) == pytest.approx(shortest(count, seconds))


@given(cases())
@example(((0, 3), [1.0] * 6))
@example(((0, 15), [1.0, 5.0]))
def test_a_cut_has_every_shard_once_in_contiguous_ranges(case: tuple[Range, list[float]]) -> None:
    shards, seconds = case
    ranges = cut(shards, seconds)
    assert len(ranges) == len(seconds)
    numbers = [i for each in ranges if each is not None for i in range(each[0], each[1] + 1)]
    assert numbers == list(range(shards[0], shards[1] + 1))
    assert all(first <= last for first, last in filter(None, ranges))


@given(cases())
def test_the_predicted_step_of_a_cut_is_as_good_as_the_best(
    case: tuple[Range, list[float]],
) -> None:
    shards, seconds = case
    best = shortest(shards[1] - shards[0] + 1, seconds)
    took = map(operator.mul, sizes(cut(shards, seconds)), seconds)
    assert max(took) <= best * AS_GOOD * (1 + 1e-9)


def fewest_sums(in_all: int, first: int, most: Sequence[int]) -> float:
    """Return with how many sums at least the shards from `first` on are cut: of every cut."""
    if first == in_all:
        return 0
    if not most:
        return math.inf
    counts = range(min(most[0], in_all - first) + 1)
    return min(
        (len(cover(in_all, (first, first + n - 1))) if n else 0)
        + fewest_sums(in_all, first + n, most[1:])
        for n in counts
    )


@given(st.integers(1, 9), st.lists(SECONDS, min_size=1, max_size=4))
@example(4, [1.0, 1.0, 1.0])
@example(12, [1.0, 2.0, 2.0, 2.0])
@example(16, [5.0, 1.0, 1.0])
def test_no_cut_that_is_as_good_has_fewer_sums(count: int, seconds: list[float]) -> None:
    longest = shortest(count, seconds) * AS_GOOD * (1 - 1e-9)
    fewest = fewest_sums(count, 0, [min(count, int(longest / each)) for each in seconds])
    ranges = filter(None, cut((0, count - 1), seconds))
    assert sum(len(cover(count, each)) for each in ranges) <= fewest


def test_a_large_fleet_is_cut_well_among_a_bounded_number_of_ways() -> None:
    seconds = [0.5 + 7 * i % 300 / 200 for i in range(1000)]
    looked_at: list[Any] = []

    def counted(*of: Any) -> Any:
        looked_at.append(of)
        return cover(*of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(range_cut, "cover", counted)
        ranges = cut((0, 4095), seconds)
    assert len(looked_at) <= 2 * WAYS
    assert sum(sizes(ranges)) == 4096
    assert sum(len(cover(4096, each)) for each in ranges if each) < 2300


@pytest.mark.parametrize(
    ("shards", "seconds", "ranges"),
    [
        (8, [1.0, 1.0], [(0, 3), (4, 7)]),
        (8, [1.0, 1.0, 1.0], [(0, 2), (3, 5), (6, 7)]),
        (4, [1.0, 1.0, 1.0], [(0, 1), (2, 3), None]),
        (5, [1.0, 1.0], [(0, 1), (2, 4)]),
        (2, [1.0, 1.0, 1.0], [(0, 0), (1, 1), None]),
        (16, [1.0, 5.0], [(0, 13), (14, 15)]),
        (4, [1.0, 9.0], [(0, 3), None]),
        (2, [1.0, 0.1, 1.0], [None, (0, 1), None]),
        (1, [1.0], [(0, 0)]),
    ],
)
def test_cuts(shards: int, seconds: list[float], ranges: list[Range | None]) -> None:
    assert cut((0, shards - 1), seconds) == ranges


@given(cases(), st.data())
def test_who_is_needed_gets_a_shard_if_that_makes_no_step_longer(
    case: tuple[Range, list[float]], data: st.DataObject
) -> None:
    shards, seconds = case
    count = shards[1] - shards[0] + 1
    needed = data.draw(st.sets(st.integers(0, len(seconds) - 1), max_size=count))
    ranges = cut(shards, seconds, needed=needed)
    assert sum(sizes(ranges)) == count
    longest = shortest(count, seconds) * AS_GOOD * (1 - 1e-9)
    assert all(ranges[i] for i in needed if seconds[i] <= longest)


def test_halves_of_a_power_of_two_have_one_sum_each() -> None:
    for exponent in range(1, 8):
        ranges = cut((0, 2**exponent - 1), [1.0] * 2)
        assert [len(cover(2**exponent, each)) for each in ranges if each] == [1, 1]


def test_shards_in_words() -> None:
    assert shards_named((3, 3)) == "shard 3"
    assert shards_named((3, 5)) == "shards 3 … 5"


@given(st.integers(1, 70), st.lists(st.tuples(SECONDS, st.integers(1, 9)), min_size=1, max_size=5))
def test_a_relay_is_cut_like_its_workers_beside_one_another(
    count: int, relays: list[tuple[float, int]]
) -> None:
    seconds, workers = map(list, zip(*relays, strict=True))
    apart = [each for each, at_once in relays for _ in range(at_once)]
    best = shortest(count, apart)
    assert shortest_step(count, seconds, workers) == pytest.approx(best)
    held = zip(sizes(cut((0, count - 1), seconds, workers)), seconds, workers, strict=True)
    assert max(math.ceil(n / at_once) * each for n, each, at_once in held) <= AS_GOOD * best + 1e-9


def test_relays_get_as_many_shards_as_there_are_workers_below() -> None:
    workers = [63] * 8 + [62] * 8
    assert sizes(cut((0, 999), [0.001] * 16, workers)) == workers
