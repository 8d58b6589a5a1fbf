"""The programs that a live run can be exported to: TensorBoard and Prometheus."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError, because
from manychar.processes.optional_dependencies import needing, require
from manychar.protocol.messages import Dimensions

logger = logging.getLogger(__name__)


class Exporter(Protocol):
    """A program outside of manychar that a run is exported to."""

    def status(self, snapshot: Snapshot) -> None:
        """Export the run's figures."""

    def sample(self, step: int, text: str) -> None:
        """Export a sample of the weights of a step."""

    def close(self) -> None:
        """Export what is left, and end."""


def check(*, tensorboard: Path | None = None, metrics_port: int | None = None) -> None:
    """Raise UserError where `exporters` would: before a run is made, and without numpy."""
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
    """Yield the exporters that are wanted; they are closed at the end.

    Raises UserError for what is not installed, or cannot be written or listened at.
    """
    with contextlib.ExitStack() as stack:
        found: list[Exporter] = []
        if tensorboard is not None:
            with needing("tensorboard", "--tensorboard"):
                from manychar.observability.tensorboard import EventFiles  # noqa: PLC0415 - an extra

            found.append(EventFiles(tensorboard))
            stack.callback(found[-1].close)
        if metrics_port is not None:
            with needing("prometheus", "--metrics-port"):
                from manychar.observability.prometheus import LOOPBACK, Metrics  # noqa: PLC0415 - an extra

            metrics = Metrics(metrics_port, dimensions)
            found.append(metrics)
            stack.callback(metrics.close)
            logger.info(f"figures for Prometheus: http://{LOOPBACK}:{metrics.port}/metrics")
        yield found
