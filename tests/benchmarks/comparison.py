"""Sides beside one another: figures, the ratios of the paired rounds, and their targets."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from tests.benchmarks.rounds import Figures, Measured, interleave
from tests.benchmarks.tables import number, spread, table

HEAD = ("what", "this program", "against", "its figure", "ratio", "at least")

Pair = tuple[str, str] | tuple[str, str, float]
"""What is compared with what; and the least ratio, where there is a target."""


def ratios(above: Figures, below: Figures) -> Figures:
    """Return the ratio of each round."""
    pairs = zip(above.values, below.values, strict=True)
    return Figures(tuple(_ratio(*pair) for pair in pairs))


def _ratio(above: float, below: float) -> float:
    return 1.0 if above == below else above / below if below else math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row: this program's figures beside another's, the paired ratios, and their target.

    `percent` shows the ratio as a share. Where `less_is_better`, as with times, the ratio is theirs
    over ours. `least` is the target of the median ratio, 0 for none.
    """

    what: str
    ours: Figures
    against: str
    theirs: Figures
    percent: bool = False
    less_is_better: bool = False
    least: float = 0.0

    @property
    def ratio(self) -> Figures:
        """How much better this program is, round by round."""
        pair = (self.theirs, self.ours) if self.less_is_better else (self.ours, self.theirs)
        return ratios(*pair)

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells, under HEAD."""
        unit, factor = (" %", 100.0) if self.percent else ("x", 1.0)
        ratio = self.ratio.times(factor)
        return (
            self.what,
            spread(self.ours),
            self.against,
            spread(self.theirs),
            spread(ratio, unit if math.isfinite(ratio.median) else ""),
            f"{number(factor * self.least)}{unit}" if self.least else "",
        )


def comparisons(rows: Iterable[Comparison]) -> str:
    """Return the table of these rows; its last column is there where one has a target."""
    lines = [HEAD, *(row.cells() for row in rows)]
    width = len(HEAD) if any(line[-1] for line in lines[1:]) else len(HEAD) - 1
    return table(lines[0][:width], [line[:width] for line in lines[1:]])


def compare(
    sides: Mapping[str, Measured],
    rounds: int,
    pairs: Sequence[Pair],
    what: str = "{}",
    *,
    percent: bool = False,
    less_is_better: bool = False,
) -> list[Comparison]:
    """Measure the sides of the pairs in turn; a pair with a side that is not there is left out.

    `what` is the rows' name, with the first side of the pair in it.
    """
    there = [pair for pair in pairs if {*pair[:2]} <= {*sides}]
    named = {name for pair in there for name in pair[:2]}
    found = interleave({name: side for name, side in sides.items() if name in named}, rounds)
    return [
        Comparison(
            what=what.format(ours),
            ours=found[ours],
            against=theirs,
            theirs=found[theirs],
            percent=percent,
            less_is_better=less_is_better,
            least=sum(least),
        )
        for ours, theirs, *least in there
    ]
