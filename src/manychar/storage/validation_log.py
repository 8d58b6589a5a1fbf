"""validation.jsonl, the held-out loss of every checkpoint that was judged, and the best one's name.

A line is a function of the run's definition, so a line of a step that is done again comes again.
"""

import errno
import json
import math
import os
from pathlib import Path

from manychar.processes.errors import UserError
from manychar.protocol.early_stopping import EarlyStopping
from manychar.storage.atomic_files import parsed, read_file, rename, replace_file, temporary_name
from manychar.storage.checkpoint import checkpoint_path, list_checkpoints, read_checkpoint
from manychar.storage.run_directory import RunDirectory

VALIDATION_NAME = "validation.jsonl"
BEST_NAME = "best.safetensors"
LARGEST_FILE = 2**28


def read_validation_losses(directory: RunDirectory) -> dict[int, float]:
    """Return the losses by step, in nats a character; a line that is torn is passed over."""
    return _verdicts_in(_read(directory))


def _read(directory: RunDirectory) -> str:
    try:
        return read_file(directory.path / VALIDATION_NAME, LARGEST_FILE).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _verdicts_in(text: str) -> dict[int, float]:
    validation_losses: dict[int, float] = {}
    for line in text.splitlines():
        try:
            values = parsed(line)
            nats = values["nats"]
            validation_losses[int(values["step"])] = math.inf if nats is None else float(nats)
        except (ValueError, KeyError, TypeError):
            continue
    return validation_losses


def append_validation_loss(directory: RunDirectory, step: int, nats: float) -> None:
    """Add a checkpoint's loss, and make it durable: where the run ends may depend on it.

    Raises OSError; then no half of a line is left.
    """
    with (directory.path / VALIDATION_NAME).open("ab", buffering=0) as file:
        before, line = file.tell(), _line(step, nats).encode()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def _line(step: int, nats: float) -> str:
    bits = nats / math.log(2)
    values = {"nats": nats, "bits": bits} if math.isfinite(nats) else {"nats": None, "bits": None}
    return json.dumps({"step": step, **values}) + "\n"


def recover_validation_losses(directory: RunDirectory, step: int) -> dict[int, float]:
    """Cut off what was said of checkpoints after `step`, and of the best one; return the rest."""
    found = _read(directory)
    kept = {each: nats for each, nats in sorted(_verdicts_in(found).items()) if each <= step}
    lines = "".join(_line(*verdict) for verdict in kept.items())
    if lines != found:
        replace_file(directory.path / VALIDATION_NAME, lines.encode())
    best = directory.checkpoints / BEST_NAME
    held = _step_of(best)
    if held is None or held > step:
        best.unlink(missing_ok=True)
    least = EarlyStopping(kept, on=True, every=0, patience=0).best
    if least is None or least == held:
        return kept
    if _step_of(checkpoint_path(directory.checkpoints, least)) is not None:
        keep_best(directory, least)
    return kept


def _step_of(path: Path) -> int | None:
    """Return the step of a checkpoint; None if it is not there, or damaged."""
    try:
        return read_checkpoint(path).state.step
    except UserError:
        return None


def unvalidated(
    directory: RunDirectory, validation_losses: dict[int, float], at_most: int
) -> tuple[int, ...]:
    """Return the steps of the checkpoints at the interval that are on disk without a verdict."""
    every = directory.operation.checkpoint_every
    if not directory.definition.validation or not every:
        return ()
    saved = [step for step, _ in list_checkpoints(directory.checkpoints) if step <= at_most]
    return tuple(step for step in saved if step % every == 0 and step not in validation_losses)


def is_over(directory: RunDirectory, step: int) -> bool:
    """Whether the run ended at the checkpoint of `step`, because it got no better."""
    operation = directory.operation
    validation_losses = read_validation_losses(directory)
    early_stopping = EarlyStopping(
        validation_losses,
        on=directory.definition.validation > 0,
        every=operation.checkpoint_every,
        patience=operation.stop_when_no_better,
    )
    for each in unvalidated(directory, validation_losses, step):
        early_stopping.expect(each)
    return early_stopping.is_over(step)


def keep_best(directory: RunDirectory, step: int) -> None:
    """Give the checkpoint of `step` its second name. Raises OSError."""
    best = directory.checkpoints / BEST_NAME
    temporary = temporary_name(best)
    temporary.unlink(missing_ok=True)
    checkpoint = checkpoint_path(directory.checkpoints, step)
    try:
        os.link(checkpoint, temporary)
    except OSError:  # not every file system has links
        replace_file(best, checkpoint.read_bytes())
        return
    rename(temporary, best)
    temporary.unlink(missing_ok=True)  # two links to one file: rename leaves both as they are
