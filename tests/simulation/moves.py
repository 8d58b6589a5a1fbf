"""A server whose ranges move at random between steps: what follows speed moves them less often."""

import itertools
import random
from collections.abc import Sequence
from typing import Any
from unittest import mock

from manychar.numerics.tree_reduction import Range
from manychar.protocol import membership, worker_speed
from manychar.protocol.effects import Effect
from manychar.protocol.events import Event
from manychar.protocol.member import Member
from manychar.protocol.membership import Lease, Membership
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.server import ParameterServer

MOVES = 0.6
MEASURE_EVERY = 0.5


class MovingMembership(Membership):
    """Cuts at random places, which depend on the server's session alone: a recording has it."""

    chance: random.Random

    def cut_anew(self, now: float) -> tuple[list[Lease], list[Member]]:
        """Cut anew more often than there is a reason."""
        if self.chance.random() >= MOVES:
            return super().cut_anew(now)
        self.workers_changed()
        self._next_move = now
        with (
            mock.patch.object(membership, "best_cut", self._cut),
            mock.patch.object(membership, "_pays", return_value=True),
        ):
            return super().cut_anew(now)

    def lease_unheld(self, missing: Any) -> list[Lease]:
        """Cut what nobody holds at random places, too."""
        with mock.patch.object(membership, "best_cut", self._cut):
            return super().lease_unheld(missing)

    def _cut(
        self, shards: Range, units: Sequence[Sequence[float]], _: Sequence[int], **__: int
    ) -> list[Range | None]:
        first, last = shards
        most = min(len(units), last - first + 1)
        inner = self.chance.sample(range(first + 1, last + 1), self.chance.randint(1, most) - 1)
        starts = [first, *sorted(inner), last + 1]
        ranges: list[Range | None] = [(a, b - 1) for a, b in itertools.pairwise(starts)]
        ranges += [None] * (len(units) - len(ranges))
        if self.chance.random() < 0.5:
            self.chance.shuffle(ranges)
        return ranges


class MovingServer(ParameterServer):
    """The server, with the ranges of the workers moved at random."""

    def __init__(self, spec: RunSpec, *, now: float) -> None:
        super().__init__(spec, now=now)
        self.membership.__class__ = MovingMembership
        self.membership.chance = random.Random(spec.session)  # type: ignore[attr-defined]  # noqa: S311

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Measure a worker without a range more often than a real server."""
        with mock.patch.object(worker_speed, "MEASURE_EVERY", MEASURE_EVERY):
            return super().handle(event, now)
