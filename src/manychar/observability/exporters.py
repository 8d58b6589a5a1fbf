"""The programs that a run can be exported to: TensorBoard and Prometheus."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError, because
from manychar.processes.optional_dependencies import needing, require

if TYPE_CHECKING:
    from manychar.observability.tensorboard import EventFiles

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


class Exporter(Protocol):
    """A program outside of manychar that a run is exported to."""

    def status(self, snapshot: Snapshot) -> None:
        """Export the run's figures."""

    def sample(self, step: int, text: str) -> None:
        """Export a sample of the weights of a step."""

    def close(self) -> None:
        """Export what is left, and end."""


@contextlib.contextmanager
def _usable(flag: str, value: Path | int, extra: str) -> Iterator[None]:
    """Raise UserError for what is not installed, or cannot be written or listened at."""
    try:
        with needing(extra, flag):
            yield
    except OSError as error:
        raise UserError(f"{flag} {value}: {because(error)}; choose another") from None


def check(*, tensorboard: Path | None = None, metrics_port: int | None = None) -> None:
    """Raise UserError where `exporters` would: before a run is made, and without numpy."""
    if tensorboard is not None:
        with _usable("--tensorboard", tensorboard, "tensorboard"):
            require("tensorboardX", "tensorboard", "--tensorboard")
            tensorboard.mkdir(parents=True, exist_ok=True)
    if metrics_port is not None:
        with _usable("--metrics-port", metrics_port, "prometheus"):
            require("prometheus_client", "prometheus", "--metrics-port")
            socket.create_server((LOOPBACK, metrics_port)).close()


def open_event_files(directory: Path) -> "EventFiles":
    """Begin a new event file for TensorBoard. Raises UserError."""
    with _usable("--tensorboard", directory, "tensorboard"):
        from manychar.observability.tensorboard import EventFiles  # noqa: PLC0415 - an extra

        return EventFiles(directory)


@contextlib.contextmanager
def exporters(
    *, tensorboard: Path | None = None, metrics_port: int | None = None
) -> Iterator[list[Exporter]]:
    """Yield the exporters that are wanted; they are closed at the end. Raises UserError."""
    with contextlib.ExitStack() as stack:
        found: list[Exporter] = []
        if tensorboard is not None:
            found.append(open_event_files(tensorboard))
            stack.callback(found[-1].close)
        if metrics_port is not None:
            with _usable("--metrics-port", metrics_port, "prometheus"):
                from manychar.observability.prometheus import Metrics  # noqa: PLC0415 - an extra

                metrics = Metrics(LOOPBACK, metrics_port)
            found.append(metrics)
            stack.callback(metrics.close)
            logger.info(f"figures for Prometheus: http://{LOOPBACK}:{metrics.port}/metrics")
        yield found
