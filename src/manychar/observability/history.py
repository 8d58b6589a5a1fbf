"""A run directory's past, told to the sinks as if it went by now: for a run that nobody watched."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manychar.observability.exporters import exporters
from manychar.observability.model_source import as_it_trains
from manychar.processes.errors import UserError
from manychar.protocol.messages import Report
from manychar.protocol.run_spec import dimensions_of
from manychar.storage.checkpoint import list_checkpoints
from manychar.storage.metrics import read_metrics
from manychar.storage.run_directory import RunDirectory, open_run
from manychar.storage.validation_log import read_validation_losses

logger = logging.getLogger(__name__)


def pass_on(run: Path, *, tensorboard: Path, sample_length: int) -> None:
    """Pass on the losses, the judgements, and a sample of each checkpoint.

    Raises UserError where it is no run directory, or has no losses yet.
    """
    directory = open_run(run)
    vocabulary, _ = directory.streams()
    reports = list(reports_of(directory))
    dimensions = dimensions_of(directory.definition, len(vocabulary))
    with exporters(dimensions, tensorboard=tensorboard) as beside:
        for sink in beside:
            for report in reports:
                sink.report(report)
        for step, text in samples_of(directory, sample_length):
            for sink in beside:
                sink.sample(step, text)
    logger.info(
        f"{run}: passed on up to step {reports[-1].step:,}; of a live run, give the endpoint"
    )


def reports_of(directory: RunDirectory) -> Iterator[Report]:
    """Yield what metrics.jsonl says, then each judgement. Raises UserError for a run without."""
    report = None
    for line in read_metrics(directory.path):
        report = _report(directory, line)
        yield report
    if report is None:
        raise UserError(f"{directory.path}: no losses yet: there is a line every 100 steps")
    for step, nats in sorted(read_validation_losses(directory).items()):
        yield dataclasses.replace(report, validated=step, validation=nats)


def _report(directory: RunDirectory, line: dict[str, Any]) -> Report:
    return Report(
        run=directory.run,
        term=0,
        step=line["step"],
        steps=directory.operation.steps,
        loss=line["loss"],
        smooth_loss=line["smooth_loss"],
        characters=line["characters"],
        seconds=float(line.get("seconds", 0.0)),
        workers=(),
        standing_by=0,
        counts={},
        checkpoint=line["step"],
        checkpoint_age=0.0,
        validated=None,
        validation=None,
        best=None,
    )


def samples_of(directory: RunDirectory, length: int) -> Iterator[tuple[int, str]]:
    """Yield (step, text) of each checkpoint but the first: what was shown while it trained."""
    for step, path in list_checkpoints(directory.checkpoints):
        if step == 0:
            continue
        try:
            checkpoint = directory.read(path)
        except UserError as error:
            logger.warning(str(error))
            continue
        parameters, seed = checkpoint.state.parameters, directory.definition.seed
        yield (
            step,
            as_it_trains(parameters, checkpoint.vocabulary, seed=seed, step=step, length=length),
        )
