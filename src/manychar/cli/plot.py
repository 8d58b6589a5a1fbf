"""The command `plot`."""

from pathlib import Path
from typing import Annotated

from manychar.cli.options import Output, argument
from manychar.processes.errors import needing


def plot(
    runs: Annotated[list[Path], argument("RUN", "Run directories.", Path)], output: Output
) -> None:
    """Plot the loss curves of one or more runs to a .png or .svg file."""
    with needing("plot", "manychar plot"):
        from manychar.observability.plot import draw_curves

    draw_curves(runs, output)
