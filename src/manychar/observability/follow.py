"""Exports a run from outside the fleet: a live one until it ends, or a run directory's history."""

import contextlib
import logging
from pathlib import Path

from manychar.network.keys import ClientKey
from manychar.observability.exporters import exporters, open_event_files
from manychar.observability.history import read_history, require_points
from manychar.observability.model_source import load_of_run, model_of, training_sample
from manychar.observability.observer_client import ObserverClient, events_of
from manychar.observability.snapshot import Snapshot
from manychar.protocol.messages import Weights
from manychar.storage.checkpoint import list_checkpoints
from manychar.storage.run_directory import open_run

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
    """Export a live run until it ends. A lost server has `connect_timeout` seconds to come back.

    Raises UserError as `events_of` and `exporters` do.
    """
    client = ObserverClient(endpoint, key, connect_timeout=connect_timeout)
    with (
        contextlib.closing(events_of(client)) as events,
        exporters(tensorboard=tensorboard, metrics_port=metrics_port) as targets,
    ):
        for event in events:
            if isinstance(event, Snapshot):
                for target in targets:
                    target.status(event)
            elif isinstance(event, Weights) and event.version > 0 and client.welcome is not None:
                model, seed = model_of(client.welcome, event), client.welcome.seed
                text = training_sample(*model, seed=seed, step=event.version, length=SAMPLE_LENGTH)
                for target in targets:
                    target.sample(event.version, text)


def export_history(run: Path, *, tensorboard: Path) -> None:
    """Export a run directory: its losses, and a sample of each checkpoint. Raises UserError."""
    directory = open_run(run)
    history = read_history(directory)
    require_points(history, directory)
    with contextlib.closing(open_event_files(tensorboard)) as files:
        for point in history.points:
            files.point(point)
        for step, nats in history.validation_losses:
            files.validation(step, nats)
        for step, path in list_checkpoints(directory.checkpoints):
            if step > 0 and (model := load_of_run(directory, path)) is not None:
                seed = directory.definition.seed
                text = training_sample(*model, seed=seed, step=step, length=SAMPLE_LENGTH)
                files.sample(step, text)
    last = history.points[-1].step
    logger.info(f"{run}: exported up to step {last:,}; for a live run, give its endpoint")
