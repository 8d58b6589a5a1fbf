"""The command `train`."""

from typing import Any

from manychar.cli.options import TextFiles
from manychar.cli.run_setup import exit_with, refuse_second, resume_line, run_of
from manychar.network.endpoints import require_safe
from manychar.network.router import Router
from manychar.numerics.option import as_flags
from manychar.processes.queued_stream import queued
from manychar.processes.subcommand import as_pasted
from manychar.processes.usable_cores import hint_at_cores


def train(text: TextFiles = None, **flags: Any) -> None:
    """Train with a server and its workers on this machine."""
    refuse_second(text, flags)
    if (bind := flags.get("bind")) is not None:
        require_safe(bind, keys=False, insecure=flags.get("insecure", False))
        if "resume" not in flags:
            Router(bind, None).close()  # before a run directory is made for nothing
    from manychar.fleet.local_fleet import LocalFleet
    from manychar.observability.exporters import exported
    from manychar.observability.progress import ProgressDisplay
    from manychar.storage.run_directory import removed_if_refused

    known = as_flags({name: flags.get(name) for name in ("bind", "insecure")})
    again = as_pasted("train", *known)
    with exported(flags) as on_status:  # before a run directory is made
        directory = run_of(text, flags)
        resume_line(directory, again)
        hint_at_cores("--workers", directory.operation.workers)
        display = ProgressDisplay(directory, flags.get("log_every"))
        with removed_if_refused(directory), queued("stdout"), display:
            finish = LocalFleet(directory, display, on_status, bind=bind).run()
    exit_with(finish, directory, again=again)
