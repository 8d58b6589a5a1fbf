"""Exports a live run to Prometheus."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError, because
from manychar.processes.optional_dependencies import needing

logger = logging.getLogger(__name__)

OnStatus = Callable[[Snapshot], None]
LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def exported(metrics_port: int | None = None) -> Iterator[OnStatus]:
    """Yield what is to be called with each snapshot of a run. Raises UserError."""
    if metrics_port is None:
        yield lambda _: None
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
        yield metrics.status
