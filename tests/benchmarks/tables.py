"""Markdown tables, and figures with their spread."""

import math
from collections.abc import Iterable, Sequence

from tests.benchmarks.rounds import Figures


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
