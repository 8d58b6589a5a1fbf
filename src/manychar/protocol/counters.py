"""What the server counts: messages dropped, work done again, ranges moved, files not written."""

import enum


class Counter(enum.StrEnum):
    """The identifier of each count. observability/status has a sentence for each."""

    UNITS_REPEATED = enum.auto()
    UNITS_CONFLICTING = enum.auto()
    UNITS_NOT_COMPARED = enum.auto()
    UNITS_NOT_OPEN = enum.auto()
    UNITS_FROM_WRONG_STATE = enum.auto()
    UNITS_NOT_FINITE = enum.auto()
    GRANTS_RESENT = enum.auto()
    RANGES_MOVED = enum.auto()
    MESSAGES_BEFORE_READY = enum.auto()
    MESSAGES_FROM_STALE_SESSION = enum.auto()
    MESSAGES_MALFORMED = enum.auto()
    MESSAGES_FROM_REVOKED_KEY = enum.auto()
    CLIENTS_REFUSED = enum.auto()
    HANDSHAKES_REFUSED = enum.auto()
    HANDSHAKES_FAILED = enum.auto()
    SENDS_DROPPED = enum.auto()
    CHECKPOINTS_NOT_VALIDATED = enum.auto()
    JOURNAL_NOT_WRITTEN = enum.auto()
    METRICS_NOT_WRITTEN = enum.auto()
    CONFIG_NOT_WRITTEN = enum.auto()
    EVENTS_NOT_WRITTEN = enum.auto()


USUAL = {
    *(Counter.UNITS_REPEATED, Counter.UNITS_NOT_COMPARED, Counter.UNITS_NOT_OPEN),
    *(Counter.GRANTS_RESENT, Counter.RANGES_MOVED, Counter.MESSAGES_FROM_STALE_SESSION),
}
"""Those that rise in normal operation, when processes start or end and ranges move.

`status` shows them, the progress does not.
"""
