"""validation.jsonl: step, sha256 and validation loss of every checkpoint that was validated.

The validation process appends to it. Which checkpoint is the best follows from the losses.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping

from manychar.processes.errors import UserError
from manychar.protocol.early_stopping import EarlyStopping
from manychar.storage.append_log import AppendLog, LogReader
from manychar.storage.atomic_files import lock_file
from manychar.storage.checkpoint import checkpoint_path, list_checkpoints, stated_metadata
from manychar.storage.run_directory import RunDirectory

VALIDATION_NAME = "validation.jsonl"
LOCKED_WITHIN = 5.0  # seconds; the process of a server that was killed ends sooner


def read_validation_losses(
    directory: RunDirectory, reader: LogReader | None = None
) -> dict[int, float]:
    """Return the losses by step, in nats a character, infinite where one overflowed.

    With a `reader` those that are new since it was last read. A result of another checkpoint than
    the present one is ignored. Raises UserError.
    """
    losses: dict[int, float] = {}
    for record in reader or LogReader(directory.path / VALIDATION_NAME):
        step, nats = record["step"], record["nats"]
        path = checkpoint_path(directory.checkpoints, step)
        if stated_metadata(path).get("sha256") in (None, record["sha256"]):  # None: pruned
            losses[step] = math.inf if nats is None else nats
    return losses


@contextlib.contextmanager
def validation_log(directory: RunDirectory, *, up_to: float = math.inf) -> Iterator[AppendLog]:
    """Hold the log, to append to it; records of steps above `up_to` are removed.

    Raises UserError where another process holds it or it cannot be read, and OSError.
    """
    path = directory.path / VALIDATION_NAME
    with path.open("ab") as lock:
        try:
            lock_file(lock, within=LOCKED_WITHIN)
        except BlockingIOError:
            raise UserError(f"{path}: another process appends to it; end it") from None
        reader = LogReader(path, up_to=up_to)
        for _ in reader:
            pass
        with contextlib.closing(AppendLog(path, reader.extent)) as log:
            yield log


def append_result(log: AppendLog, step: int, sha256: str, nats: float) -> None:
    """Add a checkpoint's loss durably: where the run ends may depend on it. Raises OSError."""
    log.append({"step": step, "sha256": sha256, "nats": nats if math.isfinite(nats) else None})
    log.flush()
    log.sync()


def resume_validation(directory: RunDirectory, step: int) -> tuple[LogReader, dict[int, float]]:
    """Remove results after `step`; return (reader, other losses). Raises OSError, UserError."""
    if (directory.path / VALIDATION_NAME).exists():
        with validation_log(directory, up_to=step):
            pass
    reader = LogReader(directory.path / VALIDATION_NAME)
    return reader, read_validation_losses(directory, reader)


def unvalidated(
    directory: RunDirectory, validation_losses: dict[int, float], at_most: int
) -> tuple[int, ...]:
    """Return the steps of the checkpoints at the interval that are on disk without a result."""
    every = directory.operation.checkpoint_every
    if not directory.definition.validation or not every:
        return ()
    saved = [step for step, _ in list_checkpoints(directory.checkpoints) if step <= at_most]
    return tuple(step for step in saved if step % every == 0 and step not in validation_losses)


def early_stopping_of(directory: RunDirectory) -> EarlyStopping:
    """Return the early stopping that the next server of a run begins with. Raises UserError."""
    losses = read_validation_losses(directory)
    early_stopping = EarlyStopping(losses, directory.definition, directory.operation)
    for step in unvalidated(directory, losses, directory.newest_step()):
        early_stopping.expect(step)
    return early_stopping


def best_checkpoint(directory: RunDirectory, losses: Mapping[int, float]) -> int | None:
    """Return the step of the checkpoint with the least of these losses, of those on disk."""
    finite = {step: nats for step, nats in losses.items() if math.isfinite(nats)}
    saved = [step for step, _ in list_checkpoints(directory.checkpoints) if step in finite]
    return min(saved, key=finite.__getitem__, default=None)
