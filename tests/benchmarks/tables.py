"""Markdown tables: figures with their spread, ratios beside their targets."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from tests.benchmarks.rounds import Figures

COMPARISON = ("what", "this program", "against", "its figure", "ratio", "at least", "")


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
    """One row: this program's figures beside another's, the ratio of the medians, and a target.

    `percent` shows the ratio as a share; `target` is a ratio in either case, 0 for none. Where
    `less_is_better`, as with times, the ratio is theirs over ours.
    """

    what: str
    ours: Figures
    against: str
    theirs: Figures
    target: float = 0.0
    percent: bool = False
    less_is_better: bool = False

    @property
    def ratio(self) -> float:
        """How much better the median is."""
        above, below = self.ours.median, self.theirs.median
        if self.less_is_better:
            above, below = below, above
        return above / below if below and not math.isinf(below) else math.nan

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells, under COMPARISON."""
        reached = "reached" if self.ratio >= self.target else "not reached"
        return (
            self.what,
            spread(self.ours),
            self.against,
            spread(self.theirs),
            self._shown(self.ratio),
            self._shown(self.target) if self.target else "",
            reached if self.target else "",
        )

    def _shown(self, ratio: float) -> str:
        if math.isnan(ratio):
            return ""
        return f"{100 * ratio:.0f} %" if self.percent else f"{ratio:.3g}x"


def comparisons(rows: Iterable[Comparison]) -> str:
    """Return the table of these rows."""
    return table(COMPARISON, [row.cells() for row in rows])
