"""The tensors of a unit's result: one frame on the wire, of which a receiver has views."""

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from manychar.numerics.tree_reduction import Range, ancestors, cover, largest_cover
from manychar.protocol import field_types as field
from manychar.protocol.dimensions import Dimensions, shards_in
from manychar.protocol.field_types import DIGEST_BYTES, Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPARSE_FROM = 1024  # characters in the vocabulary


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
    `sparse` are the run's sizes where the sums go without the columns of Wxh that are zero.
    """

    sums: tuple[Frame, ...]
    hidden: Frame
    losses: tuple[float, ...]
    digests: bytes
    sparse: Dimensions | None = None

    def pack(self) -> bytes:
        losses, sums = struct.pack(f"<{len(self.losses)}d", *self.losses), self.sums
        if self.sparse is not None:
            from manychar.protocol.sparse_sum import pack_sum  # noqa: PLC0415 - imports numpy

            sums = tuple(part for each in sums for part in pack_sum(each, self.sparse))
        return b"".join((*sums, self.hidden, losses, self.digests))

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
        sparse, count = sparse_form(size), shards_in(values)
        of_shards = _frame_length(size, 0, count)
        if sparse is None:
            whole = memoryview(super().unpack(frame, size, values))
            parts, view = whole[:-of_shards], whole[-of_shards:]
            sums = equal_parts(parts, len(parts) // size.parameters_bytes)
        else:
            from manychar.protocol.sparse_sum import unpack_sums  # noqa: PLC0415 - imports numpy

            sums, view = unpack_sums(frame, size, _nodes(size, values))
            if len(view) != of_shards:
                raise field.WireError(f"{len(view)} bytes after the sums, expected {of_shards}")
        at_digests = len(view) - count * field.DIGEST_BYTES
        at_losses = at_digests - count * field.LOSS_BYTES
        losses = struct.unpack_from(f"<{count}d", view, at_losses)
        return Payload(tuple(sums), view[:at_losses], losses, bytes(view[at_digests:]), sparse)


def sparse_form(size: Dimensions) -> Dimensions | None:
    """Return the sizes where sums go without zero columns: small ones are as fast with them."""
    return size if size.vocabulary_size >= SPARSE_FROM else None


def _frame_length(size: Dimensions, nodes: int, shards: int) -> int:
    of_shard = size.hidden_bytes + field.LOSS_BYTES + field.DIGEST_BYTES
    of_node = size.parameters_bytes + (size.vocabulary_size if sparse_form(size) else 0)
    return nodes * of_node + shards * of_shard


def _nodes(size: Dimensions, values: Mapping[str, int]) -> int:
    first, last = values["first"], values["last"]
    if not first <= last < size.shards:
        raise field.WireError(f"shards {first} … {last} of {size.shards}")
    return len(cover(size.shards, (first, last)))


def _payload_bytes(size: Dimensions, values: Mapping[str, int]) -> int:
    return _frame_length(size, _nodes(size, values), shards_in(values))


def largest_payload(size: Dimensions) -> int:
    """Return the length of the longest payload of a unit's result: no range has more nodes."""
    return _frame_length(size, largest_cover(size.shards), size.shards)


PayloadField = Annotated[Payload, _PayloadFrame(_payload_bytes)]


# What is right of a range's shards and of all nodes within it, a digest each.


def pack_digests(count: int, shards: Range, of: Callable[[int | Range], object]) -> bytes:
    """Return the digests of what `of` gives for each shard and node."""
    return b"".join(digest(repr(of(each)).encode()) for each in _within(count, shards))


def differs(claim: Mapping[int | Range, object], right: Frame, count: int, shards: Range) -> bool:
    """Whether anything that is claimed of these shards and nodes has another digest."""
    within = _within(count, shards)
    known = dict(zip(within, equal_parts(right, len(within)), strict=True))
    both = claim.keys() & known.keys()
    return any(digest(repr(claim[each]).encode()) != known[each] for each in both)


def _within(count: int, shards: Range) -> list[int | Range]:
    first, last = shards
    leaves = [(shard, shard) for shard in range(first, last + 1)]
    nodes = {node for leaf in leaves for node in (leaf, *ancestors(count, leaf))}
    within = sorted(node for node in nodes if first <= node[0] and node[1] <= last)
    return [*range(first, last + 1), *within]


def _digests_bytes(size: Dimensions, values: Mapping[str, int]) -> int:
    _payload_bytes(size, values)
    return DIGEST_BYTES * len(_within(size.shards, (values["first"], values["last"])))


DigestsFrame = Annotated[Frame, field.Tensor(_digests_bytes)]
