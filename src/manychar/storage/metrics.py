"""metrics.jsonl, as far as it has been written: how a run has gone, a line every 100 steps."""

from pathlib import Path
from typing import Any

from manychar.processes.errors import UserError, because
from manychar.storage.atomic_files import open_regular, parsed

METRICS_NAME = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run directory, oldest first; what is torn or no line is passed over.

    Each has `step`, `loss` and `smooth_loss` in nats a stream, `characters`, `seconds` and
    `workers`; a run that has made no 100 steps has none. Raises UserError where it cannot be read.
    """
    path = run / METRICS_NAME
    try:
        with open_regular(path) as file:
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: {because(error)}") from None
    return [values for line in text.splitlines() if (values := _values(line)) is not None]


def _values(line: str) -> dict[str, Any] | None:
    try:
        values = parsed(line)
        numbers = [values[name] for name in ("step", "loss", "smooth_loss", "characters")]
    except (ValueError, KeyError, TypeError):
        return None
    return values if all(type(number) in (int, float) for number in numbers) else None
