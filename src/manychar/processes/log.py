"""Lines on standard error: each has a level, and is text or JSON, as the environment says.

The environment, because whoever starts a process passes it on: a run's children speak to their
parent in JSON, so that it can say again what they said, in the form that it was told.
"""

import datetime
import json
import math
import os
from collections.abc import Mapping
from typing import Any, Protocol

from manychar.protocol.messages import Level

LEVEL_VARIABLE = "MANYCHAR_LOG_LEVEL"
FORMAT_VARIABLE = "MANYCHAR_LOG_FORMAT"
FOR_A_PARENT = {LEVEL_VARIABLE: Level.INFO, FORMAT_VARIABLE: "json"}
_ORDER = tuple(Level)


class Say(Protocol):
    """Whoever tells a person something."""

    def __call__(self, text: str, level: Level = Level.INFO, /) -> None:
        """Say one line."""


def is_json() -> bool:
    """Whether lines are JSON objects."""
    return os.environ.get(FORMAT_VARIABLE) == "json"


def is_wanted(level: Level) -> bool:
    """Whether lines of this level are said."""
    least = os.environ.get(LEVEL_VARIABLE, Level.INFO)
    return least not in _ORDER or _ORDER.index(level) >= _ORDER.index(Level(least))


def line(text: str, level: Level, **more: Any) -> str:
    """Return what a line is on standard error; `more` are values for whoever reads JSON."""
    if not is_json():
        return text
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    values = {"time": now, "level": level, "text": text, **more}
    return to_json(values)


def to_json(values: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return JSON that every reader takes: a number that is none, or has no end, is null."""
    return json.dumps(_known(values), ensure_ascii=False, allow_nan=False, indent=indent)


def _known(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _known(item) for key, item in value.items()}
    return [_known(item) for item in value] if isinstance(value, list | tuple) else value


def read(heard: str) -> tuple[str, Level]:
    """Return (text, level) of a line that a child said; what is no such line is a warning."""
    try:
        values = json.loads(heard)
        return str(values["text"]), Level(values["level"])
    except (ValueError, KeyError, TypeError):
        return heard, Level.WARNING
