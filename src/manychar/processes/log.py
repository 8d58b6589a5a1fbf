"""Log records on standard error: text, or a JSON object a line, as the environment says.

Children inherit the environment: they write JSON to their parent, which logs each record again.
"""

import contextlib
import datetime
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from manychar.protocol.effects import Level

LEVEL_VARIABLE = "MANYCHAR_LOG_LEVEL"
FORMAT_VARIABLE = "MANYCHAR_LOG_FORMAT"
FOR_A_PARENT = {LEVEL_VARIABLE: Level.INFO, FORMAT_VARIABLE: "json"}
NUMBERS = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a terminal obeys them, in a path, too

logger = logging.getLogger("manychar")


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """Return what every log line has: time, level and text."""
    now = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    time, level = now.isoformat(timespec="milliseconds"), record.levelname.lower()
    return {"time": time, "level": level, "text": record.getMessage()}


def escaped(text: str) -> str:
    """Return a text on one line, its control characters in hexadecimal."""
    return CONTROL.sub(lambda each: f"\\x{ord(each[0]):02x}", text)


def write_line(line: str) -> None:
    """Write a line to standard error, also where nothing reads it any more, or it is closed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # None has no `write`
        sys.stderr.write(f"{line}\n")


class Handler(logging.Handler):
    """Calls a function with each record."""

    def __init__(self, function: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self._function = function

    def emit(self, record: logging.LogRecord) -> None:
        self._function(record)


def as_line(text: str) -> str:
    """Return a text as the line of a record of level info."""
    level = {"levelno": logging.INFO, "levelname": "INFO"}
    return _line_of(logging.makeLogRecord({"msg": text, **level}))


def _line_of(record: logging.LogRecord, prefix: str = "") -> str:
    """Return a record's line; in JSON it also has the values of `extra={"values": …}`."""
    fields = fields_of(record)
    fields["text"] = prefix + fields["text"]
    return to_json(fields | getattr(record, "values", {})) if is_json() else escaped(fields["text"])


def configure(prefix: str = "") -> None:
    """Log to standard error, at the level and in the form that the environment says."""
    handler = Handler(lambda record: write_line(_line_of(record, prefix)))
    least = os.environ.get(LEVEL_VARIABLE, Level.INFO)
    handler.setLevel(NUMBERS[Level(least)] if least in tuple(Level) else logging.INFO)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.DEBUG)  # for the run's events


def shows_info() -> bool:
    """Whether lines of level info are shown."""
    return all(handler.level <= logging.INFO for handler in logger.handlers[:1])


def is_json() -> bool:
    """Whether lines are JSON objects."""
    return os.environ.get(FORMAT_VARIABLE) == "json"


def to_json(values: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return JSON in which a number that is not finite is null."""
    return json.dumps(_finite(values), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def read(line: str) -> tuple[str, int, dict[str, Any]]:
    """Return (text, level, all fields) of a child's line; one that is no record is a warning."""
    try:
        fields = json.loads(line)
        return str(fields["text"]), NUMBERS[Level(fields["level"])], fields
    except (ValueError, KeyError, TypeError):
        return line, logging.WARNING, {}
