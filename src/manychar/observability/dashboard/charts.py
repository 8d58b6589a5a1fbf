"""The curves: options for ECharts (its style is chart_theme.json), and the same in a sentence.

No line differs from another by its colour alone.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from manychar.observability.dashboard.view import View
from manychar.observability.history import speeds

Options = dict[str, Any]
Data = Sequence[tuple[float, float]]


class Chart(NamedTuple):
    """What ECharts draws, and what it shows in one sentence."""

    options: Options
    summary: str


def loss_chart(view: View) -> Chart:
    """Return the loss a character over the steps: of each step, smoothed, and of validation."""
    points, validation_losses = view.history.points, view.history.validation_losses
    series = [
        _line("each step", [(p.step, p.loss) for p in points], "--faint", width=1),
        _line("smooth", [(p.step, p.smooth_loss) for p in points], "--first"),
    ]
    if validation_losses:
        series.append(_line("validation", validation_losses, "--second", dashed=True))
    words = "Loss: no step has been reported yet"
    if points:
        first, last = points[0], points[-1]
        start = f"{first.smooth_loss:.3f} nats a character at step {first.step:,}"
        words = f"Loss: smooth, from {start} to {last.smooth_loss:.3f} at step {last.step:,}"
    if validation_losses:
        step, nats = validation_losses[-1]
        words += f"; validation {nats:.3f} at step {step:,}"
    if view.best is not None:
        words += f", best at step {view.best:,}"
    return Chart(_plane(series, x="step"), words + ".")


def speed_chart(view: View) -> Chart:
    """Return the characters a second over the training time."""
    found = speeds(view.history.points)
    line = _line("characters a second", [(p.seconds, speed) for p, speed in found], "--first")
    words = "Characters a second: not known yet."
    if values := [speed for _, speed in found]:
        span = f"between {min(values):,.0f} and {max(values):,.0f}"
        seconds = found[-1][0].seconds
        words = f"Characters a second: {values[-1]:,.0f} now, {span} in {seconds:,.0f} s."
    return Chart(_plane([line], x="seconds"), words)


def _plane(series: list[Options], *, x: str) -> Options:
    several = len(series) > 1
    return {
        "grid": {"top": 40 if several else 12},
        "legend": {"show": several},
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "value", "name": x, "nameGap": 26, "splitLine": {"show": False}},
        "yAxis": {"type": "value", "scale": several},
        "series": series,
    }


def _line(name: str, data: Data, colour: str, width: int = 2, *, dashed: bool = False) -> Options:
    return {
        "type": "line",
        "name": name,
        "data": [[x, round(y, 4) if math.isfinite(y) else None] for x, y in data],
        "showSymbol": dashed or len(data) < 3,
        "itemStyle": {"color": f"var({colour})"},
        "lineStyle": {"width": width, "type": "dashed" if dashed else "solid"},
    }
