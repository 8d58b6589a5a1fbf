"""Chooses the checkpoint that a server resumes from, and records it in the journal.

Checkpoints that are damaged, or not to be resumed from, are renamed.
"""

import dataclasses

from manychar.processes.log import logger
from manychar.storage.append_log import AppendLog, LogReader
from manychar.storage.atomic_files import rename
from manychar.storage.checkpoint import Checkpoint
from manychar.storage.journal import ServerStart, continue_journal, read_journal, resume_metrics
from manychar.storage.run_directory import RunDirectory
from manychar.storage.validation_log import resume_validation


@dataclasses.dataclass(frozen=True, eq=False)
class ResumePoint:
    """A checkpoint to resume from, the logs to continue, and how far the run has come.

    `seconds` of training so far; `validation_losses` in nats a character by checkpoint's step.
    """

    checkpoint: Checkpoint
    journal: AppendLog
    metrics: AppendLog
    seconds: float
    validation: LogReader
    validation_losses: dict[int, float]


def recover(directory: RunDirectory, term: int) -> ResumePoint:
    """Choose the newest whole checkpoint, before `resume_before`; record it in the journal.

    Raises UserError where no checkpoint is whole, OSError where a file cannot be written.
    """
    reading = read_journal(directory.path, directory.run_id, with_steps=False)
    checkpoint = _choose(directory, term)
    step = checkpoint.state.step
    journal = continue_journal(directory.path, directory.run_id, reading)
    if again := max(reading.newest - step, 0):
        logger.info(f"resuming from step {step:,}: steps done again: at least {again:,}")
    if reading.newest < step:
        name = journal.path.name
        logger.warning(f"{name}: no record of some steps up to {step:,}: verify will say so")
    logger.debug(f"term {term} begins with the checkpoint of step {step:,}")
    journal.append(ServerStart(term, step, checkpoint.sha256))
    journal.flush()
    journal.sync()
    metrics, seconds = resume_metrics(directory.path, step)
    validation, losses = resume_validation(directory, step)
    return ResumePoint(checkpoint, journal, metrics, seconds, validation, losses)


def _choose(directory: RunDirectory, term: int) -> Checkpoint:
    before = directory.facts.resume_before
    for step, path in directory.resumable():
        if before is not None and step >= before:
            rename(path, path.with_name(f"{path.name}.before-term-{term}"))
    checkpoint, damaged = directory.newest_checkpoint()
    for path, why in damaged.items():
        aside = path.with_name(f"{path.name}.damaged-{term}")
        logger.warning(f"{why}; renamed to {aside.name}, going on from an earlier checkpoint")
        rename(path, aside)
    return checkpoint
