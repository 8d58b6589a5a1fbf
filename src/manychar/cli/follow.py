"""The command `follow`."""

from pathlib import Path
from typing import Any

from manychar.cli.options import ConnectTimeout, Key, Watched
from manychar.network.endpoints import is_endpoint
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin


def follow(
    source: Watched, connect_timeout: ConnectTimeout = 600.0, key: Key = None, **flags: Any
) -> None:
    """Export a live or finished run to TensorBoard, and a live run to Prometheus."""
    pin("portable")
    from manychar.network.client_identity import find_key
    from manychar.observability.follow import export_history
    from manychar.observability.follow import follow as export_live

    if not flags:
        raise UserError("nowhere to export to: give --tensorboard DIR or --metrics-port N")
    if is_endpoint(source):
        export_live(source, find_key(key), connect_timeout=connect_timeout, **flags)
        return
    if "metrics_port" in flags:
        raise UserError("--metrics-port needs a live run: give its server's endpoint")
    export_history(Path(source), **flags)
