"""Markdown tables: figures with their spread, and ratios."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from tests.benchmarks.rounds import Figures

COMPARISON = ("what", "this program", "against", "its figure", "ratio", "at least")


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


def spread(figures: Figures, unit: str = "") -> str:
    """Return the median, with its unit, and the lowest and the highest figure."""
    low, high = min(figures.values), max(figures.values)
    return f"{number(figures.median)}{unit} ({number(low)} … {number(high)})"


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
        """Return the row's cells, under COMPARISON."""
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
    lines = [COMPARISON, *(row.cells() for row in rows)]
    width = len(COMPARISON) if any(line[-1] for line in lines[1:]) else len(COMPARISON) - 1
    return table(lines[0][:width], [line[:width] for line in lines[1:]])
