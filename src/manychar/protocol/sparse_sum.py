"""A gradient's sum on the wire without the columns of Wxh whose characters were not seen.

A byte for each character says whether its column is sent: it is where any bit is set, so that the
sum keeps its bits, and -0.0 is sent.
"""

import numpy as np

from manychar.protocol.dimensions import Dimensions
from manychar.protocol.field_types import Frame, WireError


def pack_sum(frame: Frame, size: Dimensions) -> tuple[Frame, ...]:
    """Return what is sent of a sum: a byte for each column, the columns, the other weights."""
    shape = size.hidden, size.vocabulary_size
    flat = np.frombuffer(frame, f"<u{size.value_bytes}")
    Wxh = flat[: shape[0] * shape[1]].reshape(shape)
    is_sent = np.bitwise_or.reduce(Wxh, axis=0) != 0
    return is_sent.tobytes(), Wxh[:, is_sent].tobytes(), memoryview(frame)[Wxh.nbytes :]


def unpack_sums(frame: Frame, size: Dimensions, count: int) -> tuple[list[Frame], memoryview]:
    """Return so many sums, and what follows them in the frame. WireError where it is too short."""
    V, H, dtype = size.vocabulary_size, size.hidden, f"<u{size.value_bytes}"
    sums, rest = list[Frame](), memoryview(frame)
    for _ in range(count):
        is_sent = np.frombuffer(rest[:V], "u1") != 0
        columns = H * np.count_nonzero(is_sent)
        end = V + size.parameters_bytes - size.value_bytes * (H * V - columns)
        if len(rest) < end:
            raise WireError(f"{len(rest)} bytes, expected {end} for a sum")
        sent = np.frombuffer(rest[V:end], dtype)
        flat = np.zeros(size.parameters_bytes // size.value_bytes, dtype)
        flat[: H * V].reshape(H, V)[:, is_sent] = sent[:columns].reshape(H, -1)
        flat[H * V :] = sent[columns:]
        sums.append(flat.data.cast("B"))
        rest = rest[end:]
    return sums, rest
