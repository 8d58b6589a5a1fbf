"""The command `follow`."""

from typing import Any

from manychar.cli.options import ConnectTimeout, Key, Watched
from manychar.processes.errors import UserError


def follow(
    source: Watched, connect_timeout: ConnectTimeout = 600.0, key: Key = None, **flags: Any
) -> None:
    """Export a live run to Prometheus until it ends."""
    from manychar.observability.exporters import exported
    from manychar.observability.observer_client import snapshots

    if "metrics_port" not in flags:
        raise UserError("nowhere to export to: give --metrics-port N")
    with exported(flags) as on_status:
        for snapshot in snapshots(source, key, connect_timeout=connect_timeout):
            on_status(snapshot)
