"""Cuts the shards into contiguous ranges, one a holder, in proportion to the holders' speeds.

A holder is a worker, or a relay whose `workers` compute at the same time: one shard more than it
has workers doubles its time.
"""

import functools
import heapq
import itertools
import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from manychar.numerics.tree_reduction import Range, cover

AS_GOOD = 1.02
"""A cut whose predicted step is longer by no more than this may be taken for its fewer sums."""
MOVE_GAIN = 0.95
WAYS = 4096
"""About how many ways to cut are looked at: all of them, for a small fleet."""


def shortest_step(shards: int, seconds: Sequence[float], workers: Sequence[int]) -> float:
    """Return how long so many shards take at best; `seconds` are each holder's for one shard."""
    holders = zip(seconds, workers, strict=True)
    ends = [(each, 1, each, at_once) for each, at_once in holders]  # of one shard more
    heapq.heapify(ends)
    for _ in range(shards - 1):
        _, count, each, at_once = ends[0]
        more = (rounds(count + 1, at_once) * each, count + 1, each, at_once)
        heapq.heapreplace(ends, more)
    return ends[0][0]


def cut(
    shards: Range,
    seconds: Sequence[float],
    workers: Sequence[int] | None = None,
    *,
    in_all: int | None = None,
    needed: Collection[int] = (),
) -> list[Range | None]:
    """Return a range for each holder, in order; None for one that the step does not need.

    Of the cuts whose predicted step is as short as it can be, the one with the fewest sums to send
    is returned: those of the ranges' covers in the tree of `in_all` shards. Of several, it is the
    one that gives more to earlier holders. The `needed` ones (their places) get a shard at least,
    unless there are fewer shards than them, or a shard would make the step longer.
    """
    first, last = shards
    count = last + 1 - first
    workers = workers or [1] * len(seconds)
    longest = AS_GOOD * shortest_step(count, seconds, workers)
    holders = zip(seconds, workers, strict=True)
    most = [min(count, at_once * math.floor(longest / each)) for each, at_once in holders]
    least = [int(i in needed and each > 0 and len(needed) <= count) for i, each in enumerate(most)]
    bounds = tuple(zip(least, most, strict=True))
    counts = _fewest_sums(shards, bounds, last + 1 if in_all is None else in_all)
    starts = itertools.accumulate(counts, initial=first)
    return [
        (start, start + count - 1) if count else None
        for start, count in zip(starts, counts, strict=False)  # the last one is the end
    ]


@functools.lru_cache(maxsize=64)
def _fewest_sums(shards: Range, bounds: tuple[Range, ...], in_all: int) -> list[int]:
    """Return how many shards each holder gets, within its bounds, with the fewest sums.

    Dynamic programming over the holders: of all ways to cut up to a shard the best is followed.
    In a large fleet only those with the fewest sums are, so that about WAYS are looked at.
    """
    end, needed = shards[1] + 1, sum(least for least, _ in bounds)
    left = sum(most for _, most in bounds)
    width = max(1, WAYS // (left + len(bounds)))
    ways: dict[int, _Way] = {shards[0]: _Way(0)}
    for at_least, at_most in bounds:
        left, needed = left - at_most, needed - at_least
        longer: dict[int, _Way] = {}
        for start, way in ways.items():
            least, most = max(at_least, end - left - start), min(at_most, end - needed - start)
            for count in range(most, least - 1, -1):
                after = start + count
                sums = way.sums + (len(cover(in_all, (start, after - 1))) if count else 0)
                if after not in longer or sums < longer[after].sums:
                    longer[after] = _Way(sums, count, way)
        best = heapq.nsmallest(width, longer, key=lambda after: longer[after].sums)
        ways = {after: longer[after] for after in sorted(best, reverse=True)}
    return ways[end].counts()


class _Way(NamedTuple):
    """A way to cut: how many sums it has, and the shards of the last holder and those before."""

    sums: int
    shards: int = 0
    before: "_Way | None" = None

    def counts(self) -> list[int]:
        """Return how many shards each holder gets."""
        found, way = [], self
        while way.before is not None:
            found.append(way.shards)
            way = way.before
        return found[::-1]


def best_cut(
    shards: Range,
    recent: Sequence[Sequence[float]],
    workers: Sequence[int],
    *,
    in_all: int,
    needed: Collection[int] = (),
) -> list[Range | None]:
    """Cut by the mean of each holder's `recent` seconds a shard, or without the slowest one.

    A step waits for the longest unit: a worker that stands still now and then costs more than its
    mean says. It gets no range where the steps without it take less than MOVE_GAIN of the time.
    """
    seconds = [statistics.fmean(each) for each in recent]
    ranges = cut(shards, seconds, workers, in_all=in_all, needed=needed)
    held = zip(ranges, recent, workers, strict=True)
    longest = [rounds(count_of(each), at_once) * max(of) for each, of, at_once in held]
    last = longest.index(max(longest))
    if others := seconds[:last] + seconds[last + 1 :]:
        left = [*workers[:last], *workers[last + 1 :]]
        also = {i - (i > last) for i in needed if i != last}
        without = cut(shards, others, left, in_all=in_all, needed=also)
        without.insert(last, None)
        now, then = (expected_step(each, recent, workers) for each in (ranges, without))
        if then < MOVE_GAIN * now:
            return without
    return ranges


def expected_step(
    ranges: Sequence[Range | None], recent: Sequence[Sequence[float]], workers: Sequence[int]
) -> float:
    """Return the mean of the steps that `recent` seconds would make: of each the longest unit."""
    holders = zip(ranges, recent, workers, strict=True)
    held = [(rounds(count_of(each), at_once), of) for each, of, at_once in holders if each]
    steps = range(max((len(of) for _, of in held), default=0))
    return sum(max(count * of[k % len(of)] for count, of in held) for k in steps) / len(steps)


def is_too_slow(recent: Sequence[float], step: float) -> bool:
    """Whether steps of so many seconds would often wait for this holder, even with one shard."""
    with_it = statistics.fmean(max(each, step) for each in recent)
    return step < MOVE_GAIN * with_it


def rounds(count: int, workers: int) -> int:
    """Return how many shards the busiest of so many workers computes, one after the other."""
    return -(-count // workers)


def count_of(shards: Range | None) -> int:
    """Return how many shards a range has."""
    return 0 if shards is None else shards[1] - shards[0] + 1


def numbers_of(shards: Range) -> range:
    """Return the numbers of a range's shards."""
    return range(shards[0], shards[1] + 1)


def runs_of(shards: Iterable[int]) -> list[Range]:
    """Return the maximal ranges of contiguous shards."""
    runs: list[Range] = []
    for shard in sorted(shards):
        if runs and runs[-1][1] == shard - 1:
            runs[-1] = runs[-1][0], shard
        else:
            runs.append((shard, shard))
    return runs


def shards_named(shards: Range) -> str:
    """Return a range of shards in words."""
    first, last = shards
    return f"shard {first}" if first == last else f"shards {first} … {last}"
