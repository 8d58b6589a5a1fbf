"""manychar: min-char-rnn, trained by any number of processes to the same bytes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manychar.api import Evaluation, Model, Run, load, train
    from manychar.processes.errors import UserError

__version__ = "0.4.0"
__all__ = ["Evaluation", "Model", "Run", "UserError", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import the Python API when it is asked for: the command line does without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from manychar import api  # noqa: PLC0415 - see above

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
