"""Exports runs to TensorBoard and Prometheus: a live run, or a run directory's history."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from manychar.network.keys import ClientKey
from manychar.observability.history import open_history
from manychar.observability.model_source import load_of_run, model_of, training_sample
from manychar.observability.observer_client import ObserverClient, events_of
from manychar.observability.snapshot import Exporter, Snapshot
from manychar.processes.errors import UserError, because
from manychar.processes.optional_dependencies import needing
from manychar.protocol.messages import Weights
from manychar.storage.checkpoint import list_checkpoints

if TYPE_CHECKING:
    from manychar.observability.tensorboard import EventFiles

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
SAMPLE_LENGTH = 200


@contextlib.contextmanager
def _usable(flag: str, value: Path | int, extra: str) -> Iterator[None]:
    """Raise UserError where the extra is missing, or the directory or port cannot be used."""
    try:
        with needing(extra, flag):
            yield
    except OSError as error:
        raise UserError(f"{flag} {value}: {because(error)}; choose another") from None


def open_event_files(directory: Path) -> "EventFiles":
    """Begin a new event file for TensorBoard. Raises UserError."""
    with _usable("--tensorboard", directory, "tensorboard"):
        from manychar.observability.tensorboard import EventFiles  # noqa: PLC0415 - an extra

        return EventFiles(directory)


@contextlib.contextmanager
def exporters(
    *, tensorboard: Path | None = None, metrics_port: int | None = None
) -> Iterator[list[Exporter]]:
    """Yield the exporters of these options; they are closed at the end. Raises UserError."""
    with contextlib.ExitStack() as stack:
        targets: list[Exporter] = []
        if tensorboard is not None:
            files = open_event_files(tensorboard)
            targets.append(stack.enter_context(contextlib.closing(files)))
        if metrics_port is not None:
            with _usable("--metrics-port", metrics_port, "prometheus"):
                from manychar.observability.prometheus import Metrics  # noqa: PLC0415 - an extra

                metrics = Metrics(LOOPBACK, metrics_port)
            targets.append(stack.enter_context(contextlib.closing(metrics)))
            logger.info(f"figures for Prometheus: http://{LOOPBACK}:{metrics.port}/metrics")
        yield targets


def export_live(
    endpoint: str, key: ClientKey | None, targets: Iterable[Exporter], *, connect_timeout: float
) -> None:
    """Export a live run until it ends. A lost server has `connect_timeout` seconds to answer.

    Raises UserError as `events_of` does.
    """
    client = ObserverClient(endpoint, key, connect_timeout=connect_timeout)
    with contextlib.closing(events_of(client)) as events:
        for event in events:
            if isinstance(event, Snapshot):
                for target in targets:
                    target.status(event)
            elif isinstance(event, Weights) and event.version > 0 and client.welcome is not None:
                model, seed = model_of(client.welcome, event), client.welcome.seed
                text = training_sample(model, seed=seed, step=event.version, length=SAMPLE_LENGTH)
                for target in targets:
                    target.sample(event.version, text)


def export_history(run: Path, *, tensorboard: Path) -> None:
    """Export a run directory: its losses, and a sample of each checkpoint. Raises UserError."""
    directory, history = open_history(run)
    with contextlib.closing(open_event_files(tensorboard)) as files:
        for point in history.points:
            files.point(point)
        for step, nats in history.validation_losses:
            files.validation(step, nats)
        for step, path in list_checkpoints(directory.checkpoints):
            if step > 0 and (model := load_of_run(directory, path)) is not None:
                seed = directory.definition.seed
                text = training_sample(model, seed=seed, step=step, length=SAMPLE_LENGTH)
                files.sample(step, text)
    step = history.points[-1].step
    logger.info(f"{run}: exported up to step {step:,}; for a live run, give its endpoint")
