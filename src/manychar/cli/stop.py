"""The command `stop`."""

from manychar.cli.options import ConnectTimeout, Key, Watched


def stop(source: Watched, connect_timeout: ConnectTimeout = 10.0, key: Key = None) -> None:
    """Stop a run: its server ends the step, writes a checkpoint and exits."""
    from manychar.observability.observer_client import send_stop

    send_stop(source, key, connect_timeout=connect_timeout)
