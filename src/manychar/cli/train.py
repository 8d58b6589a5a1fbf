"""The command `train`."""

from typing import Any

from manychar.cli.options import TextFiles
from manychar.cli.run_setup import exit_with, pin_run, run_of
from manychar.processes.queued_stream import queued


def train(text: TextFiles = None, **flags: Any) -> None:
    """Train with a server and its workers on this machine."""
    pin_run(text, flags)
    from manychar.fleet.local_fleet import LocalFleet
    from manychar.observability.exporters import exported
    from manychar.observability.progress import ProgressDisplay

    with exported(flags.get("metrics_port")) as on_status:  # before a run directory is made
        directory = run_of(text, flags)
        with queued("stdout"), ProgressDisplay(directory) as display:
            finish = LocalFleet(directory, display, on_status).run()
    exit_with(finish, directory, again="train")
