"""Cuts the shards into contiguous ranges, one a holder, in proportion to the holders' speeds.

A holder is a worker, or a relay whose `workers` compute at the same time: one shard more than it
has workers doubles its time.
"""

import heapq
import math
import statistics
from collections.abc import Iterable, Sequence

from manychar.numerics.tree_reduction import Range

AS_GOOD = 1.02
"""A cut whose predicted step is longer by no more than this may be taken for its fewer sums."""
MOVE_GAIN = 0.95


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
    shards: Range, seconds: Sequence[float], workers: Sequence[int] | None = None
) -> list[Range | None]:
    """Return a range for each holder, in order; None for one that would only make a step longer.

    Each boundary lies where the subtrees on both sides are the largest, among the places that leave
    the predicted step as short as it can be: a range that is a node has one sum to send.
    """
    first, last = shards
    count = last - first + 1
    workers = workers or [1] * len(seconds)
    longest = AS_GOOD * shortest_step(count, seconds, workers)
    holders = zip(seconds, workers, strict=True)
    most = [min(count, at_once * math.floor(longest / each)) for each, at_once in holders]
    able = [i for i, each in enumerate(most) if each > 0]
    ranges: list[Range | None] = [None] * len(seconds)
    start, others = first, sum(most[i] for i in able)
    for rank, i in enumerate(able):
        if start > last:
            break
        others -= most[i]
        left = len(able) - rank - 1
        least = max(1, last + 1 - others - start)
        greatest = min(most[i], last + 1 - start - left)
        ends = range(start + least, start + max(least, greatest) + 1)
        # The lowest bit of a boundary is the size of the largest subtree that begins there.
        end = max(ends, key=lambda boundary: boundary & -boundary) if left else last + 1
        ranges[i] = start, end - 1
        start = end
    return ranges


def best_cut(
    shards: Range, recent: Sequence[Sequence[float]], workers: Sequence[int]
) -> list[Range | None]:
    """Cut by the mean of each holder's `recent` seconds a shard, or without the slowest one.

    A step waits for the longest unit: a worker that stands still now and then costs more than its
    mean says. It gets no range where the steps without it take less than MOVE_GAIN of the time.
    """
    seconds = [statistics.fmean(each) for each in recent]
    ranges = cut(shards, seconds, workers)
    held = zip(ranges, recent, workers, strict=True)
    longest = [rounds(count_of(each), at_once) * max(of) for each, of, at_once in held]
    last = longest.index(max(longest))
    if others := seconds[:last] + seconds[last + 1 :]:
        without = cut(shards, others, [*workers[:last], *workers[last + 1 :]])
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
