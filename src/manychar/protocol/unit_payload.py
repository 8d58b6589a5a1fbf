"""The tensors of a unit's result: one frame on the wire, of which a receiver has views."""

import struct
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from manychar.numerics.tree_reduction import cover, largest_cover
from manychar.protocol import field_types as field
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.field_types import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray


def as_frame(array: "NDArray[Any]") -> memoryview:
    """Return the bytes of a contiguous array that is never written to; no copy."""
    return array.data.cast("B")  # little-endian, as every platform that is supported


def digest(frame: Frame) -> bytes:
    """Return a CRC-32: whether two sides hold the same bytes, against faults, not malice."""
    return zlib.crc32(frame).to_bytes(field.DIGEST_BYTES, "little")


def equal_parts(frame: Frame, count: int) -> list[Frame]:
    """Return views on `count` tensors of equal length in one frame."""
    view, length = memoryview(frame), len(frame) // count
    return [view[i * length : (i + 1) * length] for i in range(count)]


class Payload(NamedTuple):
    """The tensors of a unit's result, in this order in one frame.

    `sums` are the gradient's over the nodes of the range's cover; the others are by shard: the next
    hidden states, the losses, summed over the streams, the digests of the input hidden states.
    """

    sums: tuple[Frame, ...]
    hidden: Frame
    losses: tuple[float, ...]
    digests: bytes

    def pack(self) -> bytes:
        losses = struct.pack(f"<{len(self.losses)}d", *self.losses)
        return b"".join((*self.sums, self.hidden, losses, self.digests))

    @property
    def length(self) -> int:
        """Bytes of the frame."""
        of_losses = field.LOSS_BYTES * len(self.losses)
        return sum(map(len, self.sums)) + len(self.hidden) + of_losses + len(self.digests)


class _PayloadFrame(field.Tensor):
    """The rule of a payload's frame, whose length follows from the message's range."""

    def pack(self, value: Payload) -> Frame:
        return value.pack()

    def unpack(self, frame: Frame, size: Dimensions, values: Mapping[str, Any]) -> Any:
        view = memoryview(super().unpack(frame, size, values))
        count = values["last"] - values["first"] + 1
        at_digests = len(view) - count * field.DIGEST_BYTES
        at_losses = at_digests - count * field.LOSS_BYTES
        at_hidden = at_losses - count * size.hidden_bytes
        return Payload(
            tuple(equal_parts(view[:at_hidden], at_hidden // size.parameters_bytes)),
            view[at_hidden:at_losses],
            struct.unpack_from(f"<{count}d", view, at_losses),
            bytes(view[at_digests:]),
        )


def _frame_length(size: Dimensions, nodes: int, shards: int) -> int:
    of_shard = size.hidden_bytes + field.LOSS_BYTES + field.DIGEST_BYTES
    return nodes * size.parameters_bytes + shards * of_shard


def _payload_bytes(size: Dimensions, values: Mapping[str, int]) -> int:
    first, last = values["first"], values["last"]
    if not first <= last < size.shards:
        raise field.WireError(f"shards {first} … {last} of {size.shards}")
    return _frame_length(size, len(cover(size.shards, (first, last))), last - first + 1)


def largest_payload(size: Dimensions) -> int:
    """Return the length of the longest payload of a unit's result: no range has more nodes."""
    return _frame_length(size, largest_cover(size.shards), size.shards)


PayloadField = Annotated[Payload, _PayloadFrame(_payload_bytes)]
