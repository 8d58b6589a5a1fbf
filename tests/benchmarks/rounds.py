"""Rounds: every side in turn, again and again; median and spread of what they say."""

import dataclasses
import statistics
import sys
from collections.abc import Mapping
from typing import Protocol


class Measured(Protocol):
    """What can be measured once a round; `turn` counts the rounds from 0."""

    def measure(self, turn: int) -> float:
        """Return this round's figure."""
        ...


@dataclasses.dataclass(frozen=True)
class Figures:
    """One side's figures, a round each."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def times(self, factor: float) -> "Figures":
        """Return the figures in another unit."""
        return Figures(tuple(value * factor for value in self.values))


def interleave(sides: Mapping[str, Measured], rounds: int) -> dict[str, Figures]:
    """Ask every side once a round, in turn; return each side's figures by its name."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, side in sides.items():
            figure = side.measure(turn)
            found[name].append(figure)
            tell(f"round {turn + 1} of {rounds}: {name}: {figure:,.4g}")
    return {name: Figures(tuple(values)) for name, values in found.items()}


def tell(line: str) -> None:
    """Say how far the measuring is, on standard error."""
    print(line, file=sys.stderr, flush=True)
