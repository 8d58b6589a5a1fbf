"""The command `runs`."""

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from manychar.cli.console import write
from manychar.cli.options import argument
from manychar.processes.errors import BAD_INPUT, UserError, because
from manychar.processes.log import escaped
from manychar.storage.file_format import CONFIG_NAME

ANSWERED_WITHIN = 1.0  # seconds; else a run is shown as it is recorded
NO_CHECKPOINT = ", no checkpoint"
Below = Annotated[Path, argument("DIR", "Directory to look in. Without DIR: runs.", Path)]


def runs(directory: Below = Path("runs")) -> None:
    """List the runs below a directory: step, loss in nats a character, state, endpoint.

    Exit code 2 if some are damaged or cannot be read.
    """
    refused: list[OSError] = []  # Path.rglob would hide them
    found = os.walk(directory, onerror=refused.append)
    paths = sorted(Path(path) for path, _, files in found if CONFIG_NAME in files)
    refused = [each for each in refused if not isinstance(each, FileNotFoundError)]  # it vanished
    named = [f"{each.filename}: {because(each)}" for each in refused]
    if not paths:
        raise UserError(named[0] if named else f"{directory}: no runs below it")
    is_whole = not named
    for path in paths:
        try:
            text, faults = _described(path)
            line = "; ".join([f"{path}  {text}", *faults])
        except UserError as error:
            line = str(error)
            faults = [line]
        write(escaped(line) + "\n")
        is_whole = is_whole and not faults
    for line in named:
        write(escaped(line) + "\n")
    if not is_whole:
        raise typer.Exit(BAD_INPUT)


def _described(path: Path) -> tuple[str, list[str]]:
    """Return what is known of a run, and which of its logs are damaged. Raises UserError."""
    from manychar.observability.history import read_history
    from manychar.observability.observer_client import NoAnswerError, find_server, first, snapshots
    from manychar.protocol.status_report import is_divergence
    from manychar.storage.append_log import damage_of
    from manychar.storage.corpus_file import map_corpus
    from manychar.storage.journal import JOURNAL_NAME, METRICS_NAME, read_journal
    from manychar.storage.run_directory import open_run
    from manychar.storage.server_address import is_served, read_address
    from manychar.storage.validation_log import VALIDATION_NAME, early_stopping_of

    run = open_run(path)
    points = read_history(run).points
    faults = damage_of(path / METRICS_NAME, path / VALIDATION_NAME)
    step, loss, diverges = run.newest_step(), "loss unknown" if faults else "no loss yet", False
    if points:
        last, size = points[-1], len(map_corpus(path)[0])
        step, loss = max(step, last.step), _loss(last.loss)
        diverges = is_divergence(run.definition, size, last.step, max(last.loss, last.smooth_loss))
    is_early = early_stopping_of(run).ends_at(run.newest_step())
    state = "stopped early" if is_early else "stopped"
    state = "finished" if 0 < run.operation.steps <= step else state
    if is_live := is_served(path):
        state, where, within = "live", "", ANSWERED_WITHIN
        try:
            endpoint, key = find_server(str(path), None, connect_timeout=within)
            where, address = f" at {endpoint}", read_address(path)
            if address is not None and (key is not None or address.key is None):
                status = first(snapshots(str(path), key, connect_timeout=within), str(path)).status
                if not math.isnan(nats := status.loss_nats_per_character):  # before its first step
                    step, loss, diverges = status.step, _loss(nats), bool(status.divergence)
        except NoAnswerError:
            state = "no answer"
        except UserError:
            pass  # its endpoint is not known here, or it ends
        state += where
    elif state != "finished":  # only the journal has the steps after the last metrics
        journal = read_journal(path, run.run_id, with_steps=False)
        step = max(step, journal.newest)
        faults += journal.extent.damage(path / JOURNAL_NAME)
    if not is_live and step > (kept := run.newest_step()):
        is_there = bool(run.resumable())
        state += f", its newest checkpoint is that of step {kept:,}" if is_there else NO_CHECKPOINT
    return f"step {step:,}  {loss}  {state}{', diverges' * diverges}", faults


def _loss(nats: float) -> str:
    return f"loss {nats:#.4g} nats a character"
