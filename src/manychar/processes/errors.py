"""What goes wrong by a user's hand: one line that says what, where, and what to do."""

from manychar.protocol.effects import RUN_FAILED, STOPPED

__all__ = [
    "BAD_INPUT",
    "CRASHED",
    "INTERRUPTED",
    "REFUSED_FOR_SAFETY",
    "RUN_FAILED",
    "STOPPED",
    "STOPPING",
    "UserError",
    "because",
]

BAD_INPUT = 2
CRASHED = 70  # by an exception that is a fault of this program: a supervisor starts it again
REFUSED_FOR_SAFETY = 78
INTERRUPTED = 130

STOPPING = "stopping: the step is ended and a checkpoint written; once more ends at once"


class UserError(Exception):
    """An error that ends the program with its one line on stderr and its exit code."""

    def __init__(self, message: str, *, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def because(error: OSError) -> str:
    """Return the operating system's reason in small letters, without the path."""
    return (error.strerror or str(error)).lower()
