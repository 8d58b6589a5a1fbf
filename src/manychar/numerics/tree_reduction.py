"""Gradients of the shards -> their sum, in a fixed tree.

Floating-point addition is not associative, so the order of a sum is part of its result. Here it is
a binary tree over the shard numbers, whatever the order of arrival: adjacent pairs, level by level,
an odd last one carried up unchanged, and no zero to start from (it would turn -0.0 into 0.0).

A node is named by the shards that it covers, (first, last); one that is carried up stays the same
node. The cover of a range is the smallest set of nodes with exactly its shards: a worker that has
computed a range sends its cover's sums, which have the same bits wherever they are formed.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:  # a worker's machine adds arrays up without importing numpy
    from numpy.typing import NDArray

Summand = TypeVar("Summand", float, "NDArray[Any]")
Range = tuple[int, int]
"""The first and the last of contiguous shards."""


def children(node: Range) -> tuple[Range, Range]:
    """Return the two nodes whose sum is that of a node of two shards or more."""
    first, last = node
    middle = first + (1 << (last - first).bit_length() - 1)
    return (first, middle - 1), (middle, last)


@functools.lru_cache(maxsize=65_536)
def ancestors(count: int, node: Range) -> tuple[Range, ...]:
    """Return the nodes above a node of the tree of `count` shards, the root last."""
    above: list[Range] = []
    here = (0, count - 1)
    while here != node:
        above.append(here)
        left, right = children(here)
        here = left if node[1] <= left[1] else right
    return tuple(reversed(above))


@functools.lru_cache(maxsize=65_536)
def cover(count: int, wanted: Range) -> tuple[Range, ...]:
    """Return the cover of a range in the tree of `count` shards, in order."""

    def below(node: Range) -> tuple[Range, ...]:
        if node[1] < wanted[0] or wanted[1] < node[0]:
            return ()
        if wanted[0] <= node[0] and node[1] <= wanted[1]:
            return (node,)
        left, right = children(node)
        return below(left) + below(right)

    return below((0, count - 1))


def largest_cover(count: int) -> int:
    """Return how many nodes the cover of a range can have at most: max(1, 2 ⌈log2 count⌉)."""
    return max(1, 2 * (count - 1).bit_length())


class TreeSum(Generic[Summand]):
    """The sums of the nodes of one tree, which may come in any order.

    Two siblings are added as soon as both are there, but for the root's: these two halves are left
    to the caller, who adds them block by block, in the cache. In the order 0, 1, 2, … at most
    log2(count) + 1 sums are held.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.nodes: dict[Range, Summand] = {}

    def container(self, node: Range) -> Range | None:
        """Return the node itself where it is held, or the one held that contains it, if any."""
        if node in self.nodes:
            return node
        above = ancestors(self.count, node)
        if self.nodes.keys().isdisjoint(above):
            return None
        return next(each for each in above if each in self.nodes)

    def put(self, node: Range, value: Summand) -> None:
        """Set a node's sum, in the place of all that is held below it."""
        held = self.nodes
        if node[0] < node[1]:
            for below in [each for each in held if node[0] <= each[0] and each[1] <= node[1]]:
                del held[below]
        held[node] = value
        for above in ancestors(self.count, node)[:-1]:
            left, right = children(above)
            if left not in held or right not in held:
                return
            held[above] = held.pop(left) + held.pop(right)

    @property
    def complete(self) -> bool:
        return sum(last - first + 1 for first, last in self.nodes) == self.count

    def halves(self) -> tuple[Summand, ...]:
        """Return the root's two halves, or its sum; ValueError while a summand is missing."""
        if not self.complete:
            raise ValueError("a sum with a summand missing has no value")
        return tuple(self.nodes[node] for node in sorted(self.nodes))

    def result(self) -> Summand:
        """Return the sum; ValueError while a summand is missing."""
        first, *second = self.halves()
        return first + second[0] if second else first

    def sums(self) -> list[Summand]:
        """Return the sums of the cover of what is here, in order: the root's is added up, too."""
        return [self.result()] if self.complete else [self.nodes[n] for n in sorted(self.nodes)]


def sum_in_tree(values: Sequence[Summand]) -> Summand:
    """Return the sum of the values of all shards, or of a node's, in the order of the tree."""
    level = list(values)
    while len(level) > 1:
        odd = level[len(level) - len(level) % 2 :]
        level = [a + b for a, b in zip(level[::2], level[1::2], strict=False)] + odd
    return level[0]
