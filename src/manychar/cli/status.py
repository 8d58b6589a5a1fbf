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

    from manychar.observability.observer_client import Standing

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
    from manychar.observability import observer_client
    from manychar.observability.status import show

    look = observer_client.watch(endpoint, find_key(key), patience=connect_timeout)
    with contextlib.closing(look) as standings:
        if as_json:
            for standing in standings if watch else [next(standings)]:
                write(log.to_json(_as_json(standing), indent=None if watch else 2) + "\n")
        elif watch:
            _watch(standings)
        else:
            write(show(next(standings)))


def _watch(standings: "Iterator[Standing]") -> None:
    """Print every status: in one place on a terminal, one after the other elsewhere."""
    from rich.console import Console
    from rich.live import Live

    from manychar.observability.status import render, show

    before = None
    console = Console(highlight=False)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or contextlib.nullcontext():
        for standing in standings:
            if before and standing.report.seconds - before.report.seconds < SHORTEST_LOOK:
                continue  # too short a time to say how fast
            if live:
                live.update(render(standing, before), refresh=True)
            else:
                write(show(standing, before) + "\n")
            before = standing


def _as_json(standing: "Standing") -> dict[str, Any]:
    from manychar.observability.status import exchanging

    workers = {
        worker.name: {**worker._asdict(), "exchanging": exchanging(worker)}
        for worker in standing.workers
    }
    report = dataclasses.asdict(standing.report)
    return {**report, "waiting": standing.waiting, "workers": workers}
