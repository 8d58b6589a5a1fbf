"""The plain form of what a text is encoded as."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode(text: str) -> tuple[str, NDArray[Any]]:
    """Return (vocabulary, ids): the distinct characters in code-point order, and their numbers."""
    codes, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    dtype = next(each for each in ("u1", "<u2", "<u4") if len(codes) <= np.iinfo(each).max + 1)
    return "".join(map(chr, codes)), ids.astype(dtype)
