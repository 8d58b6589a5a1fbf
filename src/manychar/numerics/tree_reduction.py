"""Gradients of the shards -> their sum, in a fixed tree.

Floating-point addition is not associative, so the order of a sum is part of its result. Here it is
a binary tree over the shard numbers, whatever the order of arrival: adjacent pairs, level by level,
an odd last one carried up unchanged, and no zero to start from (it would turn -0.0 into 0.0).
"""

from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

Summand = TypeVar("Summand", float, NDArray[Any])


class TreeSum(Generic[Summand]):
    """A sum of `count` summands, which may arrive in any order.

    In the order 0, 1, 2, … it holds at most log2(count) + 1 partial sums. The last two, the halves,
    are left to the caller: the server's update adds them block by block, in the cache.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._halves: dict[int, Summand] = {}
        self._waiting: dict[tuple[int, int], Summand] = {}

    def add(self, index: int, value: Summand) -> None:
        """Add summand `index`, once; IndexError if there is no such summand."""
        if not 0 <= index < self.count:
            raise IndexError(f"summand {index} of {self.count}")
        level, width = 0, self.count
        while width > 2:
            sibling = index ^ 1
            if sibling < width:
                other = self._waiting.pop((level, sibling), None)
                if other is None:
                    self._waiting[level, index] = value
                    return
                value = other + value if sibling < index else value + other
            level, index, width = level + 1, index // 2, (width + 1) // 2
        self._halves[index] = value

    @property
    def complete(self) -> bool:
        return len(self._halves) == min(self.count, 2)

    def halves(self) -> tuple[Summand, ...]:
        """Return the last two partial sums, or the only summand; ValueError before that."""
        if not self.complete:
            raise ValueError("a sum with a summand missing has no value")
        return tuple(self._halves[index] for index in sorted(self._halves))

    def result(self) -> Summand:
        """Return the sum; ValueError while a summand is missing."""
        first, *second = self.halves()
        return first + second[0] if second else first
