"""The text as a side takes it: ids, and the part of them that is trained on."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from manychar.numerics.corpus import encode


def read_ids(path: str) -> tuple[int, NDArray[Any]]:
    """Return (number of distinct characters, ids) of a text file."""
    vocabulary, ids = encode(Path(path).read_bytes().decode())
    return len(vocabulary), ids
