"""Exports a live run to Prometheus."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from manychar.network.endpoints import require_loopback
from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import needing, user_errors

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def exported(flags: Mapping[str, Any]) -> Iterator[Callable[[Snapshot], None]]:
    """Yield what is to be called with each snapshot of a run, by flags. Raises UserError."""
    port, host = flags.get("metrics_port"), flags.get("metrics_host", LOOPBACK)
    require_loopback(host, "--metrics-host", insecure=flags.get("insecure", False))
    if port is None:
        yield lambda _: None
        return
    with needing("prometheus", "--metrics-port"):
        from manychar.observability.prometheus import Metrics  # noqa: PLC0415 - an extra
    with user_errors(f"--metrics-host {host} --metrics-port {port}", "choose another"):
        metrics = Metrics(host, port)
    with contextlib.closing(metrics):
        yield metrics.status
