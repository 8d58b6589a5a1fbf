"""The tensors of a unit's result: one frame on the wire, of which a receiver has views."""

import functools
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from manychar.numerics.tree_reduction import Range, ancestors, cover, largest_cover
from manychar.protocol import field_types as field
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.field_types import DIGEST_BYTES, Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPARSE_FROM = 1024  # characters in the vocabulary
FOLDED_FROM, FOLDED = 16_384, 128  # bytes of a frame; columns


def as_frame(array: "NDArray[Any]") -> memoryview:
    """Return the bytes of a contiguous array that is never written to; no copy."""
    return array.data.cast("B")  # little-endian, as every platform that is supported


def digest(frame: Frame) -> bytes:
    """Return the CRC-32 of a frame: whether two sides hold the same bytes, against faults."""
    return zlib.crc32(frame).to_bytes(field.DIGEST_BYTES, "little")


def folded_digest(frame: Frame) -> bytes:
    """Return a digest of weights, or of a sum of gradients, in a fraction of a CRC-32's time.

    A long frame is read as rows of FOLDED numbers of 64 bits, and the CRC-32 is that of the sums of
    the columns: each step waits for a worker's digest of the weights. It does not tell frames apart
    whose rows changed places, so hidden states, whose streams are whole rows, have a digest of all.
    """
    folded = 0
    if len(frame) >= FOLDED_FROM:
        import numpy as np  # noqa: PLC0415 - a worker's numerics are pinned by now

        rows = len(frame) // (8 * FOLDED)
        columns = np.frombuffer(frame, np.uint64, rows * FOLDED).reshape(rows, FOLDED)
        folded = zlib.crc32(np.add.reduce(columns, axis=0))
        frame = memoryview(frame)[columns.nbytes :]
    return zlib.crc32(frame, folded).to_bytes(field.DIGEST_BYTES, "little")


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


class _Places(NamedTuple):
    """The parts of a range's payload: how many sums, and where its shards' are in what follows."""

    nodes: int
    losses: struct.Struct
    at_losses: int
    at_digests: int
    end: int

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def of(cls, size: Dimensions, first: int, last: int) -> "_Places":
        """Return those of the shards `first` … `last`. WireError: there is no such range."""
        if not first <= last < size.shards:
            raise field.WireError(f"shards {first} … {last} of {size.shards}")
        nodes, count = len(cover(size.shards, (first, last))), last - first + 1
        losses = struct.Struct(f"<{count}d")
        at_losses = count * size.hidden_bytes
        at_digests = at_losses + losses.size
        return cls(nodes, losses, at_losses, at_digests, at_digests + count * DIGEST_BYTES)


class PayloadFrame:
    """The rule of a payload's frame, whose length follows from the message's range."""

    def pack(self, value: Payload) -> Frame:
        return value.pack()

    def unpack(self, frame: Frame, size: Dimensions, values: Mapping[str, Any]) -> Any:
        places, sparse = _Places.of(size, values["first"], values["last"]), sparse_form(size)
        if sparse is None:
            view, at_rest = memoryview(frame), places.nodes * size.parameters_bytes
            sums, rest = equal_parts(view[:at_rest], places.nodes), view[at_rest:]
        else:
            from manychar.protocol.sparse_sum import unpack_sums  # noqa: PLC0415 - imports numpy

            sums, rest = unpack_sums(frame, size, places.nodes)
            at_rest = len(frame) - len(rest)
        if len(frame) != at_rest + places.end:
            raise field.WireError(f"{len(frame)} bytes, expected {at_rest + places.end}")
        losses = places.losses.unpack_from(rest, places.at_losses)
        hidden, digests = rest[: places.at_losses], bytes(rest[places.at_digests :])
        return Payload(tuple(sums), hidden, losses, digests, sparse)


def sparse_form(size: Dimensions) -> Dimensions | None:
    """Return the sizes where sums go without zero columns: small ones are as fast with them."""
    return size if size.vocabulary_size >= SPARSE_FROM else None


def largest_payload(size: Dimensions) -> int:
    """Return the length of the longest payload of a unit's result: no range has more nodes."""
    of_node = size.parameters_bytes + (size.vocabulary_size if sparse_form(size) else 0)
    return largest_cover(size.shards) * of_node + _Places.of(size, 0, size.shards - 1).end


PayloadField = Annotated[Payload, PayloadFrame()]


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
    _Places.of(size, values["first"], values["last"])
    return DIGEST_BYTES * len(_within(size.shards, (values["first"], values["last"])))


DigestsFrame = Annotated[Frame, field.Tensor(_digests_bytes)]
