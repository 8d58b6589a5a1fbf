"""Logs of a run directory, as tests need them."""

from collections.abc import Mapping
from pathlib import Path

from manychar.storage.append_log import AppendLog, Extent
from manychar.storage.checkpoint import checkpoint_path, stated_sha256
from manychar.storage.validation_log import VALIDATION_NAME


def write_losses(run: Path, losses: Mapping[int, float]) -> None:
    """Write validation.jsonl anew: these losses by step, in nats a character."""
    log = AppendLog(run / VALIDATION_NAME, Extent())
    for step, nats in losses.items():
        sha256 = stated_sha256(checkpoint_path(run / "checkpoints", step)) or "pruned"
        log.append([{"step": step, "sha256": sha256, "nats": nats}])
    log.close()
