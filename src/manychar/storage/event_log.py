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


@contextlib.contextmanager
def event_log(run: Path) -> Iterator[AppendLog]:
    """Log to a run's events, too, also below the level that is shown; flush what is yielded.

    Raises OSError, UserError.
    """
    reader = LogReader(run / EVENTS_NAME)
    for _ in reader:
        pass
    events = AppendLog(reader.path, reader.extent, most_bytes=MOST_BYTES)

    def append(record: logging.LogRecord) -> None:
        if not hasattr(record, "values"):  # of progress
            events.append(log.fields_of(record))

    handler = log.Handler(append)
    log.logger.addHandler(handler)
    try:
        yield events
    finally:
        log.logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # it was counted and logged by then
            events.close()
