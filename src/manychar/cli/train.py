"""The command `train`."""

import logging
from typing import TYPE_CHECKING, Any

import typer

from manychar.cli.options import TextFiles
from manychar.cli.run_setup import exit_with, given, run_of
from manychar.fleet.launch_options import Export
from manychar.observability.exporters import check as check_exporters
from manychar.processes.errors import UserError

if TYPE_CHECKING:
    from manychar.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def train(text: TextFiles = None, **flags: Any) -> None:
    """Train with a server and its workers on this machine."""
    wanted = given(Export, flags)
    check_exporters(**wanted)
    directory = run_of(text, flags)
    _exit_if_finished(directory)
    from manychar.fleet.local_fleet import LocalFleet
    from manychar.observability.exporters import exporters
    from manychar.observability.progress import display_of

    workers, shards = directory.operation.workers, directory.definition.shards
    if workers > shards:
        logger.info(
            f"{workers} workers for {shards} shards: the others stand by;"
            f" --shards {workers} would give each of them work"
        )
    with display_of(directory) as screen, exporters(**wanted) as beside:
        finish = LocalFleet(directory, screen, exporters=beside).run()
    exit_with(finish, directory, again="train")


def _exit_if_finished(directory: "RunDirectory") -> None:
    """Exit where a resumed run is finished: its server would end before it could say so."""
    from manychar.storage.validation_log import is_over, read_validation_losses

    try:
        checkpoint, damaged = directory.newest_checkpoint()
    except UserError:
        return  # the server reports what is wrong
    step, steps = checkpoint.state.step, directory.operation.steps
    if damaged or directory.facts.resume_before is not None:
        return
    if directory.definition.validation and step not in read_validation_losses(directory):
        return
    if 0 < steps <= step or is_over(directory, step):
        logger.info(f"finished at step {step:,}; --steps N or --stop-when-no-better 0 continues")
        raise typer.Exit
