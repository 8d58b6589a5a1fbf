"""Exports a live run to Prometheus."""

import contextlib
import logging
from collections.abc import Iterator

from manychar.observability.snapshot import Exporter
from manychar.processes.errors import UserError, because
from manychar.processes.optional_dependencies import needing

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def exporters(*, metrics_port: int | None = None) -> Iterator[list[Exporter]]:
    """Yield the exporters of these options; they are closed at the end. Raises UserError."""
    if metrics_port is None:
        yield []
        return
    with needing("prometheus", "--metrics-port"):
        from manychar.observability.prometheus import Metrics  # noqa: PLC0415 - an extra
    try:
        metrics = Metrics(LOOPBACK, metrics_port)
    except OSError as error:
        reason = because(error)
        raise UserError(f"--metrics-port {metrics_port}: {reason}; choose another") from None
    with contextlib.closing(metrics):
        logger.info(f"figures for Prometheus: http://{LOOPBACK}:{metrics.port}/metrics")
        yield [metrics]
