"""Exports a run from outside the fleet: a live one until it ends, or a run directory's history."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from manychar.network.keys import ClientKey
from manychar.observability.exporters import exporters
from manychar.observability.history import read_history, require_points
from manychar.observability.model_source import training_sample
from manychar.observability.observer_client import ObserverClient, events_of, model_of
from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError
from manychar.protocol.messages import Weights
from manychar.storage.checkpoint import list_checkpoints
from manychar.storage.run_directory import RunDirectory, open_run

logger = logging.getLogger(__name__)

SAMPLE_LENGTH = 200


def follow(
    endpoint: str,
    key: ClientKey | None,
    *,
    connect_timeout: float,
    tensorboard: Path | None = None,
    metrics_port: int | None = None,
) -> None:
    """Export a live run until it ends. A lost server is waited for, `connect_timeout` seconds long.

    Raises UserError where it refuses, fails, or does not come back, and as `exporters` does.
    """
    client = ObserverClient(endpoint, key, connect_timeout=connect_timeout)
    with contextlib.ExitStack() as stack:
        targets = None
        for event in stack.enter_context(contextlib.closing(events_of(client))):
            if (welcome := client.welcome) is None:
                continue
            if targets is None:
                wanted = exporters(
                    welcome.dimensions, tensorboard=tensorboard, metrics_port=metrics_port
                )
                targets = stack.enter_context(wanted)
            for target in targets:
                if isinstance(event, Snapshot):
                    target.status(event)
                elif isinstance(event, Weights) and event.version > 0:
                    model = model_of(welcome, event)
                    text = training_sample(
                        *model, seed=welcome.seed, step=event.version, length=SAMPLE_LENGTH
                    )
                    target.sample(event.version, text)


def export_history(run: Path, *, tensorboard: Path) -> None:
    """Export a run directory: its losses, and a sample of each checkpoint.

    Raises UserError where it is no run directory, or has no losses yet.
    """
    from manychar.observability.tensorboard import EventFiles  # noqa: PLC0415 - an extra

    directory = open_run(run)
    history = read_history(directory)
    require_points(history, directory)
    with contextlib.closing(EventFiles(tensorboard)) as files:
        for point in history.points:
            files.point(point)
        for step, nats in history.validation_losses:
            files.validation(step, nats)
        for step, text in _samples(directory):
            files.sample(step, text)
    logger.info(
        f"{run}: exported up to step {history.points[-1].step:,}; for a live run, give its endpoint"
    )


def _samples(directory: RunDirectory) -> Iterator[tuple[int, str]]:
    """Yield (step, text) of each checkpoint but the first: as shown while the run trained."""
    seed = directory.definition.seed
    for step, path in list_checkpoints(directory.checkpoints):
        if step == 0:
            continue
        try:
            checkpoint = directory.read(path)
        except UserError as error:
            logger.warning(str(error))
            continue
        model = checkpoint.state.parameters, checkpoint.vocabulary
        yield step, training_sample(*model, seed=seed, step=step, length=SAMPLE_LENGTH)
