"""The loss chart: options for ECharts (its style is chart_theme.json), and the same in a sentence.

No line differs from another by its colour alone.
"""

import math
from collections.abc import Sequence
from typing import Any

from manychar.observability.dashboard.view import View

Options = dict[str, Any]
Data = Sequence[tuple[float, float]]


def loss_chart(view: View) -> Options:
    """Return the loss a character over the steps: of training, of validation, and smoothed."""
    points, validation_losses = view.history.points, view.history.validation_losses
    series = [
        _line("loss", [(p.step, p.loss) for p in points], "--first"),
        _line("smooth loss", [(p.step, p.smooth_loss) for p in points], "--faint", width=1),
    ]
    if validation_losses:
        series.append(_line("validation loss", validation_losses, "--second", dashed=True))
    return {
        "grid": {"top": 40},
        "legend": {"show": True},
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "value", "name": "step", "nameGap": 26, "splitLine": {"show": False}},
        "yAxis": {"type": "value", "scale": True},
        "series": series,
    }


def loss_summary(view: View) -> str:
    """Return what the chart shows, in a sentence."""
    points, validation_losses = view.history.points, view.history.validation_losses
    words = "Loss: no step has been reported yet"
    if points:
        first, last = points[0], points[-1]
        start = f"{first.loss:#.4g} nats a character at step {first.step:,}"
        words = f"Loss: from {start} to {last.loss:#.4g} at step {last.step:,}"
    if validation_losses:
        step, nats = validation_losses[-1]
        words += f"; validation {nats:#.4g} at step {step:,}"
    if view.best is not None:
        words += f", best at step {view.best:,}"
    return words + "."


def _line(name: str, data: Data, colour: str, width: int = 2, *, dashed: bool = False) -> Options:
    return {
        "type": "line",
        "name": name,
        "data": [[x, round(y, 4) if math.isfinite(y) else None] for x, y in data],
        "showSymbol": dashed or len(data) < 3,
        "itemStyle": {"color": f"var({colour})"},
        "lineStyle": {"width": width, "type": "dashed" if dashed else "solid"},
    }
