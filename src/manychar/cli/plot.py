"""The command `plot`."""

from manychar.cli.options import Output, PlotAxis, Runs
from manychar.processes.numerics_pinning import pin
from manychar.processes.optional_dependencies import needing


def plot(runs: Runs, output: Output, by: PlotAxis = "steps") -> None:
    """Plot the loss curves of one or more runs to a .png or .svg file."""
    pin("portable")
    with needing("plot", "manychar plot"):
        from manychar.observability.plot import plot as draw

    draw(runs, output, by)
