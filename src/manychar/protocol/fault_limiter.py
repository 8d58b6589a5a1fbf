"""Counts invalid messages by sender, and blocks a sender with too many of them for a while.

A sender is a key's owner where there are keys, else one connection. What is remembered is bounded:
the senders longest without a fault are forgotten first.
"""

import collections
import dataclasses

FAULTS_ALLOWED = 20
FORGIVEN_AFTER = 10.0
BLOCKED_FOR = 30.0
SENDERS_REMEMBERED = 1000


@dataclasses.dataclass
class _Record:
    """One sender's faults since `since`, and until when it is blocked."""

    since: float
    faults: int = 0
    blocked_until: float = 0.0


class FaultLimiter:
    """Counts faults. Times are seconds of any steady clock."""

    def __init__(self) -> None:
        self._records: collections.OrderedDict[bytes, _Record] = collections.OrderedDict()

    def fault(self, sender: bytes, now: float) -> bool:
        """Count a fault; True if the sender is blocked from now on."""
        record = self._records.pop(sender, None)
        if record is None or now >= record.since + FORGIVEN_AFTER:
            record = _Record(now)
        self._records[sender] = record
        if len(self._records) > SENDERS_REMEMBERED:
            self._records.popitem(last=False)
        record.faults += 1
        if record.faults <= FAULTS_ALLOWED:
            return False
        record.blocked_until = now + BLOCKED_FOR
        record.faults, record.since = 0, now + BLOCKED_FOR
        return True

    def is_blocked(self, sender: bytes, now: float) -> bool:
        record = self._records.get(sender)
        return record is not None and now < record.blocked_until
