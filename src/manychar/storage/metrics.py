"""metrics.jsonl: an append-only log of losses and speed with a record every 100 steps."""

from pathlib import Path
from typing import Any

from manychar.storage.append_log import AppendLog, LogReader

METRICS_NAME = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run directory, oldest first, as far as they can be trusted.

    Each has `step`, `loss` and `smooth_loss` in nats a stream, `characters`, `seconds` and
    `workers`. Raises UserError where the file cannot be read.
    """
    return list(LogReader(run / METRICS_NAME))


def resume_metrics(run: Path, step: int) -> tuple[AppendLog, float]:
    """Cut off records after `step`; return the log, and the seconds of training until then.

    Raises OSError and UserError.
    """
    reader = LogReader(run / METRICS_NAME, up_to=step)
    seconds = 0.0
    for record in reader:
        seconds = record["seconds"]
    return AppendLog(reader.path, reader.extent), seconds
