"""Markdown tables: figures with their spread, and ratios."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from tests.benchmarks.rounds import Figures

COMPARISON = ("what", "this program", "against", "its figure", "ratio")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float) -> str:
    """Return a figure in three places, or all of those before the point."""
    if math.isinf(value):
        return "not reached"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def spread(figures: Figures) -> str:
    """Return the median, and the lowest and the highest figure."""
    low, high = min(figures.values), max(figures.values)
    return f"{number(figures.median)} ({number(low)} … {number(high)})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row: this program's figures beside another's, and the median of the paired ratios.

    `percent` shows the ratio as a share. Where `less_is_better`, as with times, the ratio is theirs
    over ours.
    """

    what: str
    ours: Figures
    against: str
    theirs: Figures
    percent: bool = False
    less_is_better: bool = False

    @property
    def ratio(self) -> float:
        """How much better this program is, in the median round."""
        pairs = zip(self.ours.values, self.theirs.values, strict=True)
        ratios = [_ratio(*(pair[::-1] if self.less_is_better else pair)) for pair in pairs]
        return statistics.median(ratios)

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells, under COMPARISON."""
        return (
            self.what,
            spread(self.ours),
            self.against,
            spread(self.theirs),
            self._shown(self.ratio),
        )

    def _shown(self, ratio: float) -> str:
        if math.isnan(ratio):
            return ""
        return f"{100 * ratio:.0f} %" if self.percent else f"{ratio:.3g}x"


def _ratio(above: float, below: float) -> float:
    return above / below if below and not math.isinf(below) else math.nan


def comparisons(rows: Iterable[Comparison]) -> str:
    """Return the table of these rows."""
    return table(COMPARISON, [row.cells() for row in rows])
