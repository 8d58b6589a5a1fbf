"""The charts: what ECharts is to draw, the same in words, and the same as a table.

Colours are variables of page.css, so a browser that changes between light and dark needs no word
from here. No line or bar is told from another by its colour alone.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from manychar.observability.dashboard.run_history import Interval, Share, View, bits, pace_of
from manychar.protocol.messages import WorkerStats

ROWS_SHOWN = 20
LATE = 0.5
"""Seconds from which on it is said that the step waits for a worker."""
WORKERS_DRAWN = 8
ROW_HEIGHT, HEAD_HEIGHT, FOOT_HEIGHT = 70, 48, 34
DOINGS = ("computing", "exchanging", "waiting", "silent")
_WINDOW = 60
_ATTENDANCE = (
    *("worker", "host", "state", "shards", "computing", "exchanging", "waiting"),
    *("the step waits for it", "gradients", "dropped"),
)


Rows = list[tuple[str, ...]]
Options = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is drawn, what it shows in one sentence, and its numbers; `height` in pixels."""

    options: Options
    summary: str
    head: tuple[str, ...]
    rows: Rows
    height: int = 280


def loss_chart(view: View) -> Chart:
    """Return the loss a character over the steps: of training, smoothed, and held out."""
    points, validated = view.points, view.validated
    series = [
        _line("each step", [(p.step, p.nats) for p in points], "--faint", width=1),
        _line("smooth", [(p.step, p.smooth) for p in points], "--first"),
    ]
    if validated:
        validation_ids = [(j.step, j.nats) for j in validated]
        series.append(_line("validation", validation_ids, "--second", dashed=True))
    options = _plane(series, x="step")
    options["yAxis"]["scale"] = True
    return Chart(
        options,
        _loss_in_words(view),
        ("step", "loss, nats", "smooth, nats", "smooth, bits", "validation, nats"),
        _loss_rows(view),
    )


def _loss_in_words(view: View) -> str:
    if not view.points:
        return "Loss: no step has been reported yet."
    first, last = view.points[0], view.points[-1]
    words = (
        f"Loss: smooth, from {first.smooth:.3f} nats a character at step {first.step:,}"
        f" to {last.smooth:.3f} at step {last.step:,}"
    )
    if view.validated:
        newest = view.validated[-1]
        words += f"; validation {newest.nats:.3f} at step {newest.step:,}"
    if view.best is not None:
        words += f", best at step {view.best:,}"
    return words + "."


def _loss_rows(view: View) -> Rows:
    validated = {one.step: f"{one.nats:.3f}" for one in view.validated}
    chosen = {p.step: p for p in _some(view.points)} | {
        p.step: p for p in view.points if p.step in validated
    }
    return [
        (
            f"{step:,}",
            f"{chosen[step].nats:.3f}",
            f"{chosen[step].smooth:.3f}",
            f"{bits(chosen[step].smooth):.3f}",
            validated.get(step, "–"),
        )
        for step in sorted(chosen, reverse=True)
    ]


def pace_chart(view: View) -> Chart:
    """Return the characters a second over the run's time."""
    pace = pace_of(view.points)
    series = [_line("characters a second", [(p.seconds, v) for p, v in pace], "--first")]
    options = _plane(series, x="seconds")
    words = "Characters a second: not known yet."
    if pace:
        values = [value for _, value in pace]
        words = (
            f"Characters a second: {values[-1]:,.0f} now, between {min(values):,.0f} and"
            f" {max(values):,.0f} in {pace[-1][0].seconds:,.0f} s."
        )
    rows: Rows = [
        (f"{p.seconds:,.1f}", f"{p.step:,}", f"{v:,.0f}") for p, v in reversed(_some(pace))
    ]
    return Chart(options, words, ("seconds", "step", "characters a second"), rows)


def timeline_chart(view: View) -> Chart:
    """Return what each worker did in the last minute: a row each, in percent of every second."""
    intervals = view.intervals[-_WINDOW:]
    names = [worker.name for worker in view.workers][:WORKERS_DRAWN]
    options = _rows(names, intervals)
    rows = [_attendance_row(worker, intervals) for worker in view.workers]
    height = HEAD_HEIGHT + ROW_HEIGHT * max(len(names), 1) + FOOT_HEIGHT
    return Chart(options, _timeline_in_words(view), _ATTENDANCE, rows, height)


def _timeline_in_words(view: View) -> str:
    if not view.workers:
        return "Workers: none is there."
    shares = [(w.name, mean_share(w.name, view.intervals[-_WINDOW:])) for w in view.workers]
    told = [f"{name} {share.computing:.0%}" for name, share in shares if share is not None]
    words = f"Workers: {len(view.workers)} here"
    if told:
        words += "; computing in the last minute: " + ", ".join(told[:WORKERS_DRAWN])
    if late := [worker.name for worker in view.workers if worker.late >= LATE]:
        words += "; the step waits for " + ", ".join(late)
    return words + "."


def mean_share(name: str, intervals: Sequence[Interval]) -> Share | None:
    """Return how a worker spent these intervals together; None if it was in none of them."""
    mine = [(i.seconds, i.shares[name]) for i in intervals if name in i.shares]
    total = sum(seconds for seconds, _ in mine)
    if not total:
        return None
    return Share(
        *(sum(seconds * getattr(s, doing) for seconds, s in mine) / total for doing in DOINGS)
    )


def _attendance_row(worker: WorkerStats, intervals: Sequence[Interval]) -> tuple[str, ...]:
    share = mean_share(worker.name, intervals)
    shares = ["–" if share is None else f"{getattr(share, doing):.0%}" for doing in DOINGS[:3]]
    return (
        worker.name,
        worker.host,
        worker.state,
        str(worker.leases),
        *shares,
        f"{worker.late:.1f} s" if worker.late >= LATE else "–",
        f"{worker.units:,}",
        f"{worker.dropped:,}",
    )


# What ECharts is told.


def _plane(series: list[Options], *, x: str) -> Options:
    return {
        **_look(),
        "grid": {
            "left": 8,
            "right": 28,
            "bottom": 30,
            "containLabel": True,
            "top": 40 if len(series) > 1 else 12,
        },
        "legend": {
            "top": 0,
            "left": 0,
            "show": len(series) > 1,
            "itemGap": 16,
            "textStyle": {"color": "var(--ink)"},
        },
        "tooltip": {**_tooltip(), "trigger": "axis"},
        "xAxis": {
            **_axis(),
            "name": x,
            "nameLocation": "middle",
            "nameGap": 26,
            "splitLine": {"show": False},
        },
        "yAxis": _axis(),
        "series": series,
    }


def _rows(names: Sequence[str], intervals: Sequence[Interval]) -> Options:
    """Return a row of stacked bars for each worker, on one axis of time."""
    end = intervals[-1].at if intervals else 0.0
    ago = [f"{i.at - end:.0f} s" if i.at < end else "now" for i in intervals]
    padded = [""] * (_WINDOW - len(ago)) + ago
    places = range(len(names))
    top = [HEAD_HEIGHT + ROW_HEIGHT * place for place in places]
    x_axis = {**_axis(), "type": "category", "data": padded, "axisTick": {"show": False}}
    y_axis = {**_axis(), "max": 1, "show": False}
    return {
        **_look(),
        "aria": {"enabled": True, "label": {"enabled": False}, "decal": {"show": True}},
        "grid": [{"left": 8, "right": 8, "top": y + 22, "height": ROW_HEIGHT - 30} for y in top],
        "title": [
            {
                "text": name,
                "left": 4,
                "top": y,
                "textStyle": {"color": "var(--ink)", "fontSize": 13, "fontWeight": "normal"},
            }
            for name, y in zip(names, top, strict=True)
        ],
        "legend": {
            "top": 0,
            "left": 0,
            "itemWidth": 18,
            "itemGap": 16,
            "data": _occurring(intervals),
            "textStyle": {"color": "var(--ink)"},
        },
        "tooltip": {**_tooltip(), "trigger": "axis", "axisPointer": {"type": "shadow"}},
        "xAxis": [
            {
                **x_axis,
                "gridIndex": place,
                "axisLabel": {
                    "show": place == len(names) - 1,
                    "color": "var(--muted)",
                    "showMaxLabel": True,
                },
            }
            for place in places
        ],
        "yAxis": [{**y_axis, "gridIndex": place} for place in places],
        "series": [
            _bars(doing, name, place, intervals)
            for place, name in enumerate(names)
            for doing in DOINGS
        ],
    }


def _occurring(intervals: Sequence[Interval]) -> list[str]:
    """Return what the legend has to name: nobody need be told what silence would look like."""
    silent = any(share.silent for i in intervals for share in i.shares.values())
    return list(DOINGS if silent else DOINGS[:-1])


def _bars(doing: str, name: str, place: int, intervals: Sequence[Interval]) -> Options:
    values: list[float | None] = [None] * (_WINDOW - len(intervals))
    for interval in intervals:
        share = interval.shares.get(name)
        values.append(None if share is None else round(getattr(share, doing), 3))
    decal = _DECALS[doing]
    return {
        "type": "bar",
        "name": doing,
        "stack": str(place),
        "xAxisIndex": place,
        "yAxisIndex": place,
        "data": values,
        "barCategoryGap": "0%",
        "emphasis": {"disabled": True},
        "itemStyle": {"color": f"var(--{doing})", "decal": decal},
    }


_STRIPES = {
    "symbol": "rect",
    "dashArrayX": [1, 0],
    "dashArrayY": [2, 4],
    "rotation": -0.785,
    "color": "var(--pattern)",
}
_DOTS = {
    "symbol": "circle",
    "dashArrayX": [[4, 4], [0, 4, 4, 0]],
    "dashArrayY": [4, 0],
    "symbolSize": 0.8,
    "color": "var(--pattern)",
}
_DECALS: dict[str, Any] = {
    "computing": {"symbol": "none"},
    "exchanging": _STRIPES,
    "waiting": _DOTS,
    "silent": {**_STRIPES, "rotation": 0.785, "dashArrayY": [4, 3]},
}


def _line(
    name: str,
    data: Sequence[tuple[float, float]],
    colour: str,
    *,
    width: int = 2,
    dashed: bool = False,
) -> Options:
    return {
        "type": "line",
        "name": name,
        "data": [[x, round(y, 4) if math.isfinite(y) else None] for x, y in data],
        "showSymbol": dashed or len(data) < 3,
        "symbolSize": 7,
        "emphasis": {"disabled": True},
        "itemStyle": {"color": f"var({colour})"},
        "lineStyle": {"width": width, "type": "dashed" if dashed else "solid"},
    }


def _look() -> Options:
    return {
        "animation": False,
        "backgroundColor": "transparent",
        "textStyle": {"fontFamily": "inherit", "fontSize": 13},
    }


def _axis() -> Options:
    return {
        "type": "value",
        "axisLabel": {"color": "var(--muted)", "fontSize": 13, "hideOverlap": True},
        "axisLine": {"lineStyle": {"color": "var(--line)"}},
        "splitLine": {"lineStyle": {"color": "var(--line)"}},
        "nameTextStyle": {"color": "var(--muted)", "fontSize": 13},
    }


def _tooltip() -> Options:
    return {
        "confine": True,
        "backgroundColor": "var(--surface)",
        "borderColor": "var(--line)",
        "textStyle": {"color": "var(--ink)", "fontSize": 13},
    }


def _some(entries: Sequence[Any]) -> list[Any]:
    """Return every n-th entry, counted from the last, so that at most ROWS_SHOWN come of it."""
    every = -(-len(entries) // ROWS_SHOWN) or 1
    return list(entries[::-1][::every][::-1])
