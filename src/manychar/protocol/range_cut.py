"""Cuts the shards into contiguous ranges, one a worker, in proportion to the workers' speeds."""

import heapq
import math
import statistics
from collections.abc import Iterable, Sequence

from manychar.numerics.tree_reduction import Range

AS_GOOD = 1.02
"""A cut whose predicted step is longer by no more than this may be taken for its fewer sums."""
MOVE_GAIN = 0.95


def shortest_step(shards: int, seconds: Sequence[float]) -> float:
    """Return how long so many shards take at best; `seconds` are each worker's for one shard."""
    ends = [(each, 1, each) for each in seconds]  # when each has computed one shard more
    heapq.heapify(ends)
    for _ in range(shards - 1):
        _, count, each = ends[0]
        heapq.heapreplace(ends, ((count + 1) * each, count + 1, each))
    return ends[0][0]


def cut(shards: Range, seconds: Sequence[float]) -> list[Range | None]:
    """Return a range for each worker, in order; None for one that would only make a step longer.

    Each boundary lies where the subtrees on both sides are the largest, among the places that leave
    the predicted step as short as it can be: a range that is a node has one sum to send.
    """
    first, last = shards
    count = last - first + 1
    longest = AS_GOOD * shortest_step(count, seconds)
    most = [min(count, math.floor(longest / each)) for each in seconds]
    able = [i for i, each in enumerate(most) if each > 0]
    ranges: list[Range | None] = [None] * len(seconds)
    start, others = first, sum(most[i] for i in able)
    for rank, i in enumerate(able):
        others -= most[i]
        left = len(able) - rank - 1
        least = max(1, last + 1 - others - start)
        greatest = min(most[i], last + 1 - start - left)
        if start > last:
            break
        ends = range(start + least, start + max(least, greatest) + 1)
        end = max(ends, key=_alignment) if left else last + 1
        ranges[i] = start, end - 1
        start = end
    return ranges


def best_cut(shards: Range, units: Sequence[Sequence[float]]) -> list[Range | None]:
    """Cut by the mean of each worker's last units, or without the one that took longest.

    A step waits for the longest unit: a worker that stands still now and then costs more than its
    mean says. It gets no range where the steps would get MOVE_GAIN shorter.
    """
    seconds = [statistics.fmean(each) for each in units]
    ranges = cut(shards, seconds)
    longest = [count_of(each) * max(of) for each, of in zip(ranges, units, strict=True)]
    last = longest.index(max(longest))
    if others := seconds[:last] + seconds[last + 1 :]:
        without = cut(shards, others)
        without.insert(last, None)
        if expected_step(without, units) < MOVE_GAIN * expected_step(ranges, units):
            return without
    return ranges


def expected_step(ranges: Sequence[Range | None], units: Sequence[Sequence[float]]) -> float:
    """Return the mean of the steps that the workers' last units would make: the longest of each."""
    held = [(count_of(each), of) for each, of in zip(ranges, units, strict=True) if each]
    steps = range(max((len(of) for _, of in held), default=0))
    return sum(max(count * of[k % len(of)] for count, of in held) for k in steps) / len(steps)


def count_of(shards: Range | None) -> int:
    """Return how many shards a range has."""
    return 0 if shards is None else shards[1] - shards[0] + 1


def numbers_of(shards: Range) -> range:
    """Return the numbers of a range's shards."""
    return range(shards[0], shards[1] + 1)


def _alignment(boundary: int) -> int:
    """Return the size of the largest subtree that begins at a shard."""
    return boundary & -boundary


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
