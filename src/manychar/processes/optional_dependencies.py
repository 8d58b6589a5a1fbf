"""Imports of optional dependencies: where one is missing, one line says what to install."""

import contextlib
from collections.abc import Iterator

from manychar.processes.errors import UserError


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
