"""The command `runs`."""

import math
import os
from pathlib import Path
from typing import Annotated

from manychar.cli.console import write
from manychar.cli.options import argument
from manychar.processes.errors import UserError, because
from manychar.processes.log import escaped
from manychar.storage.file_format import CONFIG_NAME

ANSWERED_WITHIN = 1.0  # seconds; else a run is shown as it is recorded
NO_CHECKPOINT = ", no checkpoint"
Below = Annotated[Path, argument("DIR", "Directory to look in. Without DIR: runs.", Path)]


def runs(directory: Below = Path("runs")) -> None:
    """List the runs below a directory: step, loss in nats a character, state, endpoint."""
    faults: list[OSError] = []  # Path.rglob would hide them
    found = os.walk(directory, onerror=faults.append)
    paths = sorted(Path(path) for path, _, files in found if CONFIG_NAME in files)
    faults = [each for each in faults if not isinstance(each, FileNotFoundError)]  # it vanished
    named = [f"{each.filename}: {because(each)}" for each in faults]
    if not paths:
        raise UserError(named[0] if named else f"{directory}: no runs below it")
    for path in paths:
        try:
            write(escaped(f"{path}  {_described(path)}") + "\n")
        except UserError as error:
            write(escaped(str(error)) + "\n")
    for line in named:
        write(escaped(line) + "\n")


def _described(path: Path) -> str:
    from manychar.observability.history import read_history
    from manychar.observability.observer_client import NoAnswerError, find_server, first, snapshots
    from manychar.protocol.status_report import is_divergence
    from manychar.storage.corpus_file import map_corpus
    from manychar.storage.journal import read_journal
    from manychar.storage.run_directory import open_run
    from manychar.storage.server_address import is_served, read_address
    from manychar.storage.validation_log import early_stopping_of

    run = open_run(path)
    points = read_history(run).points
    step, loss, diverges = run.newest_step(), "no loss yet", False
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
        step = max(step, read_journal(path, run.run_id, with_steps=False).newest)
    if not is_live and step > (kept := run.newest_step()):
        is_there = bool(run.resumable())
        state += f", its newest checkpoint is that of step {kept:,}" if is_there else NO_CHECKPOINT
    return f"step {step:,}  {loss}  {state}{', diverges' * diverges}"


def _loss(nats: float) -> str:
    return f"loss {nats:#.4g} nats a character"
