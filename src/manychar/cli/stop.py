"""The command `stop`."""

from manychar.cli.options import ConnectTimeout, Endpoint, Key
from manychar.processes.numerics_pinning import pin


def stop(endpoint: Endpoint, connect_timeout: ConnectTimeout = 10.0, key: Key = None) -> None:
    """Stop a run: its server ends the step, writes a checkpoint and exits."""
    pin("portable")
    from manychar.network.client_identity import find_key
    from manychar.observability.observer_client import stop as request_stop

    request_stop(endpoint, find_key(key), connect_timeout=connect_timeout)
