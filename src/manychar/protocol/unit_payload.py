"""The tensors of a unit's result, as views on one frame."""

import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from manychar.numerics.tree_reduction import cover
from manychar.protocol import field_types as field
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.field_types import Frame
from manychar.protocol.messages import UnitResult

if TYPE_CHECKING:
    from numpy.typing import NDArray


def as_frame(array: "NDArray[Any]") -> memoryview:
    """Return the little-endian bytes of a contiguous array that is never written to; no copy."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little.data.cast("B")


def digest(frame: Frame) -> bytes:
    """Return a CRC-32: whether two sides hold the same bytes, against faults, not malice."""
    return zlib.crc32(frame).to_bytes(field.DIGEST_BYTES, "little")


class Payload(NamedTuple):
    """The tensors of a unit's result, in this order in one frame.

    `sums` are the gradient's over the nodes of the range's cover; the others are by shard: the next
    hidden state, the loss, summed over its streams, and the digest of the input hidden state.
    """

    sums: Sequence[Frame]
    hidden: Sequence[Frame]
    losses: Sequence[float]
    digests: Sequence[bytes]

    def pack(self) -> bytes:
        losses = struct.pack(f"<{len(self.losses)}d", *self.losses)
        return b"".join([*self.sums, *self.hidden, losses, *self.digests])

    @classmethod
    def of(cls, result: UnitResult, size: Dimensions) -> "Payload":
        """Return views on a result's frame, whose length the codec has checked."""
        nodes = len(cover(size.shards, (result.first, result.last)))
        count = result.last - result.first + 1
        view = memoryview(result.payload)
        at_hidden = nodes * size.parameters_bytes
        at_losses = at_hidden + count * size.hidden_bytes
        at_digests = at_losses + count * field.LOSS_BYTES
        return cls(
            equal_parts(view[:at_hidden], nodes),
            equal_parts(view[at_hidden:at_losses], count),
            struct.unpack_from(f"<{count}d", view, at_losses),
            [bytes(each) for each in equal_parts(view[at_digests:], count)],
        )


def equal_parts(frame: Frame, count: int) -> list[Frame]:
    """Return views on `count` tensors of equal length in one frame."""
    view, length = memoryview(frame), len(frame) // count
    return [view[i * length : (i + 1) * length] for i in range(count)]
