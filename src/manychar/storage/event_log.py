"""events.jsonl: what the servers of a run have logged, and each checkpoint; never rewound.

It is rotated to one older file, so both together are bounded.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from manychar.processes import log
from manychar.storage.append_log import AppendLog, LogReader

EVENTS_NAME = "events.jsonl"
MOST_BYTES = 2**20


class _EventHandler(logging.Handler):
    """Appends what this process logs, also below the level that is shown; not its progress."""

    def __init__(self, events: AppendLog) -> None:
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "values"):
            self._events.append([log.fields_of(record)])


@contextlib.contextmanager
def event_log(run: Path) -> Iterator[AppendLog]:
    """Log to a run's events, too; flush what is yielded. Raises OSError, UserError."""
    reader = LogReader(run / EVENTS_NAME)
    for _ in reader:
        pass
    events = AppendLog(reader.path, reader.extent, most_bytes=MOST_BYTES)
    handler = _EventHandler(events)
    log.logger.addHandler(handler)
    try:
        yield events
    finally:
        log.logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # it was counted and logged by then
            events.close()
