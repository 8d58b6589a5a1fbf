"""The command `health`."""

import typer

from manychar.cli.console import write
from manychar.cli.options import ConnectTimeout, Endpoint, Key
from manychar.processes.numerics_pinning import pin


def health(endpoint: Endpoint, connect_timeout: ConnectTimeout = 10.0, key: Key = None) -> None:
    """Check whether a live run advances; exit code 1 where it waits, with what it waits for."""
    pin("portable")
    from manychar.network.client_identity import find_key
    from manychar.observability.status import examine

    found = examine(endpoint, find_key(key), connect_timeout=connect_timeout)
    write(f"{found.line}\n")
    raise typer.Exit(0 if found.healthy else 1)
