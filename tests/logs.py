"""Logs of a run directory, as tests need them."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from manychar.storage.append_log import AppendLog, Extent, LogReader
from manychar.storage.checkpoint import checkpoint_path, stated_metadata
from manychar.storage.journal import JOURNAL_NAME
from manychar.storage.validation_log import VALIDATION_NAME

SEQ_LENGTH = 5  # of SMALL


def write_losses(run: Path, losses: Mapping[int, float]) -> None:
    """Write validation.jsonl anew: these losses by step, in nats a character."""
    log = AppendLog(run / VALIDATION_NAME, Extent())
    for step, nats in losses.items():
        sha256 = stated_metadata(checkpoint_path(run / "checkpoints", step)).get("sha256", "pruned")
        log.append({"step": step, "sha256": sha256, "nats": nats})
    log.close()


def mean_loss(run: Path, first: int, last: int) -> float:
    """Return the mean loss of the steps that made the weights first … last, nats a character."""
    records = LogReader(run / JOURNAL_NAME)
    losses = {record["step"]: record["loss"] for record in records if "digest" in record}
    return fmean(losses[step] for step in range(first, last + 1)) / SEQ_LENGTH
