"""Where a run that is watched is passed on to, beside the person at the screen.

Whoever watches (the parent of a fleet, or `manychar follow`) tells every sink what it is told: the
server knows of none of them.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from manychar.processes.errors import UserError, because
from manychar.processes.optional_dependencies import needing, require
from manychar.protocol.messages import Dimensions, Report, Roster, WorkerStats

logger = logging.getLogger(__name__)


class Exporter(Protocol):
    """One place that a run is passed on to."""

    def report(self, report: Report) -> None:
        """Take how the run stands."""

    def workers(self, workers: tuple[WorkerStats, ...]) -> None:
        """Take how each worker has spent its time."""

    def sample(self, step: int, text: str) -> None:
        """Take what the weights of a step write."""

    def close(self) -> None:
        """Pass on what is left, and end."""


class Pages:
    """Puts together the rosters that come in several messages."""

    def __init__(self) -> None:
        self._workers: list[WorkerStats] = []

    def take(self, roster: Roster) -> tuple[WorkerStats, ...] | None:
        """Return all workers when the last page is there."""
        self._workers = [*self._workers[: roster.first], *roster.workers]
        return tuple(self._workers) if len(self._workers) == roster.total else None


def check(*, tensorboard: Path | None = None, metrics_port: int | None = None) -> None:
    """Refuse what `sinks` would refuse, before a run is made for nothing; numpy is not imported.

    Raises UserError.
    """
    if tensorboard is not None:
        require("tensorboardX", "tensorboard", "--tensorboard")
        try:
            tensorboard.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--tensorboard {tensorboard}: {because(error)}") from None
    if metrics_port is not None:
        require("prometheus_client", "prometheus", "--metrics-port")
        from manychar.observability.prometheus import require_free  # noqa: PLC0415 - an extra

        require_free(metrics_port)


@contextlib.contextmanager
def exporters(
    dimensions: Dimensions,
    *,
    tensorboard: Path | None = None,
    metrics_port: int | None = None,
) -> Iterator[list[Exporter]]:
    """Yield the sinks that are asked for; they are closed at the end. `say` tells what they tell.

    Raises UserError for what is not installed, or cannot be written or listened at.
    """
    with contextlib.ExitStack() as stack:
        found: list[Exporter] = []
        if tensorboard is not None:
            with needing("tensorboard", "--tensorboard"):
                from manychar.observability.tensorboard import EventFiles  # noqa: PLC0415 - an extra

            found.append(EventFiles(tensorboard, dimensions))
            stack.callback(found[-1].close)
        if metrics_port is not None:
            with needing("prometheus", "--metrics-port"):
                from manychar.observability.prometheus import LOOPBACK, Metrics  # noqa: PLC0415 - an extra

            metrics = Metrics(metrics_port, dimensions)
            found.append(metrics)
            stack.callback(metrics.close)
            logger.info(f"figures for Prometheus: http://{LOOPBACK}:{metrics.port}/metrics")
        yield found
