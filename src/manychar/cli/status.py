"""The commands `status` and `health`, of a live run."""

import contextlib
import logging
import sys
from typing import Annotated

import typer

from manychar.cli import console
from manychar.cli.options import AsJson, ConnectTimeout, Key, Watched
from manychar.numerics.option import Option
from manychar.processes import log
from manychar.processes.errors import because
from manychar.processes.work_progress import moves_cursor

CLEAR = "\x1b[H\x1b[2J"


def status(
    source: Watched,
    connect_timeout: ConnectTimeout = 10.0,
    watch: Annotated[bool, Option("Print the status again every second.")] = False,
    as_json: AsJson = False,
    key: Key = None,
) -> None:
    """Print the status of a live run: step, loss, workers, what it waits for, what was dropped."""
    from manychar.observability.observer_client import first, snapshots
    from manychar.observability.status import as_values, show

    found = snapshots(source, key, connect_timeout=connect_timeout)
    shown = None
    with contextlib.closing(found), console.queued_output() if watch else contextlib.nullcontext():
        for snapshot in found if watch else [first(found, source)]:
            if as_json:
                console.write(log.to_json(as_values(snapshot), indent=None if watch else 2) + "\n")
            elif snapshot.workers is not shown:  # once a second
                with console.output_named():  # rich writes an empty text there
                    text = show(snapshot) + "\n" * watch
                console.write(CLEAR * (watch and moves_cursor(sys.stdout)) + text)
                shown = snapshot.workers


def health(source: Watched, connect_timeout: ConnectTimeout = 10.0, key: Key = None) -> None:
    """Check whether a live run advances, or reports what it waits for.

    Exit code 1 if neither, 3 without a server.
    """
    from manychar.observability.status import check_health

    logging.disable(logging.WARNING)  # a probe's output is one line
    found = check_health(source, key, connect_timeout=connect_timeout)
    code = 0 if found.healthy else 1
    try:
        console.write(f"{found.line}\n")
    except OSError as error:  # the exit code is what a probe reads
        console.discard_output()
        if not isinstance(error, BrokenPipeError):
            console.log_failure(f"{console.STANDARD_OUTPUT}: {because(error)}", code)
    raise typer.Exit(code)
