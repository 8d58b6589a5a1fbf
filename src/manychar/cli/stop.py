"""The command `stop`."""

from manychar.cli.options import ConnectTimeout, Key, Watched


def stop(source: Watched, connect_timeout: ConnectTimeout = 10.0, key: Key = None) -> None:
    """Stop a run: its server ends the step, writes a checkpoint and exits."""
    from manychar.observability.observer_client import ObserverClient, events_of
    from manychar.protocol.messages import Stop

    client = ObserverClient(source, key, connect_timeout=connect_timeout)
    for _ in events_of(client, object, lambda: client.request(Stop)):
        pass
