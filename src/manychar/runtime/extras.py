"""What comes with an extra only: where it is missing, one line says what to install."""

import contextlib
from collections.abc import Iterator

from manychar.runtime.errors import UserError


@contextlib.contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Import what `manychar[extra]` brings inside this. Raises UserError where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "manychar":
            raise
        raise UserError(
            f"{what} needs {error.name}, which is not installed: pip install 'manychar[{extra}]'"
        ) from None
