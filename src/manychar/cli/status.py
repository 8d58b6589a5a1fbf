"""The command `status`."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from manychar.cli.console import write
from manychar.cli.options import AsJson, ConnectTimeout, Endpoint, Key, Watch
from manychar.processes import log
from manychar.processes.numerics_pinning import pin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manychar.observability.snapshot import Snapshot

SHORTEST_LOOK = 0.5  # seconds


def status(
    endpoint: Endpoint,
    connect_timeout: ConnectTimeout = 10.0,
    watch: Watch = False,
    as_json: AsJson = False,
    key: Key = None,
) -> None:
    """Print the status of a live run: step, loss, workers, what it waits for, what was dropped."""
    pin("portable")
    from manychar.network.client_identity import find_key
    from manychar.observability.observer_client import first, snapshots
    from manychar.observability.status import show

    found = snapshots(endpoint, find_key(key), connect_timeout=connect_timeout)
    with contextlib.closing(found):
        if as_json:
            for snapshot in found if watch else [first(found, endpoint)]:
                write(log.to_json(_as_json(snapshot), indent=None if watch else 2) + "\n")
        elif watch:
            _watch(found)
        else:
            write(show(first(found, endpoint)))


def _watch(found: "Iterator[Snapshot]") -> None:
    """Print every status: in one place on a terminal, one after the other elsewhere."""
    from rich.console import Console
    from rich.live import Live

    from manychar.observability.status import render, show

    before = None
    console = Console(highlight=False)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or contextlib.nullcontext():
        for snapshot in found:
            if before and snapshot.status.seconds - before.status.seconds < SHORTEST_LOOK:
                continue  # too short a time to say how fast
            if live:
                live.update(render(snapshot, before), refresh=True)
            else:
                write(show(snapshot, before) + "\n")
            before = snapshot


def _as_json(snapshot: "Snapshot") -> dict[str, Any]:
    status = dataclasses.asdict(snapshot.status)
    del status["first"], status["total"]
    workers = {
        worker.name: {**worker._asdict(), "exchanging": worker.exchanging}
        for worker in snapshot.workers
    }
    return {**status, "workers": workers}
