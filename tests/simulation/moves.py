"""A server whose ranges move at random between steps: what follows speed moves them less often."""

import itertools
import random
from typing import Any
from unittest import mock

from manychar.numerics.tree_reduction import Range
from manychar.protocol import membership
from manychar.protocol.membership import Lease, Membership
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.server import ParameterServer

MOVES = 0.6


class _MovingMembership(Membership):
    """Cuts at random places, which depend on the server's session alone: a recording has it."""

    chance: random.Random

    def cut_anew(self) -> tuple[list[Lease], list[Lease]]:
        """Cut anew more often than there is a reason."""
        if self.chance.random() < MOVES:
            self.come()
        with mock.patch.object(membership, "cut", self._cut):
            return super().cut_anew()

    def lease_unheld(self, missing: Any) -> list[Lease]:
        """Cut what nobody holds at random places, too."""
        with mock.patch.object(membership, "cut", self._cut):
            return super().lease_unheld(missing)

    def _cut(self, shards: Range, seconds: list[float]) -> list[Range | None]:
        first, last = shards
        most = min(len(seconds), last - first + 1)
        inner = self.chance.sample(range(first + 1, last + 1), self.chance.randint(1, most) - 1)
        starts = [first, *sorted(inner), last + 1]
        ranges: list[Range | None] = [(a, b - 1) for a, b in itertools.pairwise(starts)]
        ranges += [None] * (len(seconds) - len(ranges))
        if self.chance.random() < 0.5:
            self.chance.shuffle(ranges)
        return ranges


class MovingServer(ParameterServer):
    """The server, with the ranges of the workers moved at random."""

    def __init__(self, spec: RunSpec, *, now: float) -> None:
        super().__init__(spec, now=now)
        self.membership.__class__ = _MovingMembership
        self.membership.chance = random.Random(spec.session)  # type: ignore[attr-defined]  # noqa: S311
