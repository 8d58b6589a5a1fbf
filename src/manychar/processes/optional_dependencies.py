"""Imports of optional dependencies: where one is missing, one line says what to install."""

import contextlib
import importlib.util
from collections.abc import Iterator

from manychar.processes.errors import UserError


def require(module: str, extra: str, what: str) -> None:
    """Raise UserError where a module of `manychar[extra]` is missing, without importing it."""
    with needing(extra, what):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(name=module)


@contextlib.contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Raise UserError for an import inside this that needs `manychar[extra]`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "manychar":
            raise
        raise UserError(
            f"{what} needs {error.name}, which is not installed: pip install 'manychar[{extra}]'"
        ) from None
