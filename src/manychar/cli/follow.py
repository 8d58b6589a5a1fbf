"""The command `follow`."""

from pathlib import Path
from typing import Any

from manychar.cli.options import ConnectTimeout, Key, Watched
from manychar.network.endpoints import is_endpoint
from manychar.processes.errors import UserError


def follow(
    source: Watched, connect_timeout: ConnectTimeout = 600.0, key: Key = None, **flags: Any
) -> None:
    """Export a live or finished run to TensorBoard, and a live run to Prometheus."""
    from manychar.observability.exporters import export_history, export_live, exporters

    if not flags:
        raise UserError("nowhere to export to: give --tensorboard DIR or --metrics-port N")
    if is_endpoint(source):
        with exporters(**flags) as targets:
            export_live(source, key, targets, connect_timeout=connect_timeout)
        return
    if "metrics_port" in flags:
        raise UserError("--metrics-port needs a live run: give its server's endpoint")
    export_history(Path(source), **flags)
