"""The command `train`."""

import logging
from typing import Any

from manychar.cli.options import TextFiles
from manychar.cli.run_setup import exit_with, given, run_of
from manychar.fleet.launch_options import Export
from manychar.observability.exporters import check as check_exporters

logger = logging.getLogger(__name__)


def train(text: TextFiles = None, **flags: Any) -> None:
    """Train with a server and its workers on this machine."""
    wanted = given(Export, flags)
    check_exporters(**wanted)
    directory = run_of(text, flags)
    from manychar.fleet.local_fleet import LocalFleet
    from manychar.observability.exporters import exporters
    from manychar.observability.progress import display_of

    workers, shards = directory.operation.workers, directory.definition.shards
    if workers > shards:
        logger.info(
            f"{workers} workers for {shards} shards: the others are idle;"
            f" --shards {workers} would give each of them work"
        )
    with display_of(directory) as screen, exporters(**wanted) as beside:
        finish = LocalFleet(directory, screen, exporters=beside).run()
    exit_with(finish, directory, again="train")
