"""The scaling figure: readable on light and dark paper, and the same bytes for the same figures."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.rounds import Figures

PATH = Path(__file__).with_name("scaling.svg")
GREY, COLOURS = "#808080", ("#3b82c4", "#d9772b", "#3a9a5b")
SETTINGS = {
    "svg.hashsalt": "manychar",
    "svg.fonttype": "path",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), GREY),
    **dict.fromkeys(("xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
}


def draw(
    speeds: Mapping[int, Figures],
    traffic: Mapping[int, int],
    memory: Mapping[int, Mapping[str, float]],
    cores: int,
) -> None:
    """Draw speed by workers, bytes a step by workers, and memory by hidden units, to PATH."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    with matplotlib.rc_context(SETTINGS):
        figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(10, 3))
        _speeds(left, speeds, cores)
        _traffic(middle, traffic)
        _memory(right, memory)
        figure.tight_layout()
        figure.savefig(PATH, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def _speeds(axes: Any, speeds: Mapping[int, Figures], cores: int) -> None:
    middle = [figures.median / 1e3 for figures in speeds.values()]
    below = [m - min(f.values) / 1e3 for m, f in zip(middle, speeds.values(), strict=True)]
    above = [max(f.values) / 1e3 - m for m, f in zip(middle, speeds.values(), strict=True)]
    axes.errorbar(list(speeds), middle, [below, above], marker="o", capsize=3, color=COLOURS[0])
    axes.axvline(cores, color=GREY, linestyle=":", linewidth=1)
    axes.annotate(f" {cores} cores", (cores, 0), color=GREY, va="bottom")
    _label(axes, list(speeds), "workers", "thousand characters a second")


def _traffic(axes: Any, traffic: Mapping[int, int]) -> None:
    axes.plot(list(traffic), [v / 1e6 for v in traffic.values()], marker="o", color=COLOURS[1])
    _label(axes, list(traffic), "workers", "MB a step")


def _memory(axes: Any, memory: Mapping[int, Mapping[str, float]]) -> None:
    for role, colour in zip(("server", "worker"), (COLOURS[0], COLOURS[2]), strict=True):
        axes.plot(
            list(memory), [m[role] for m in memory.values()], marker="o", color=colour, label=role
        )
    if memory:
        axes.legend(frameon=False, labelcolor=GREY)
    _label(axes, list(memory), "hidden units", "MiB resident, at most")


def _label(axes: Any, ticks: Sequence[int], across: str, up: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
