"""The types of messages' fields, each with its limit on the wire.

A field of any other type is a TypeError at import.
"""

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

Frame = bytes | bytearray | memoryview
"""Anything that holds raw bytes and can be sent as one frame."""

TEXT_LENGTH = 500
"""The longest text that a message carries, in characters."""

NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
NAME_RULE = "1 to 64 of the characters A-Z a-z 0-9 . _ : -"

DIGEST_BYTES = 4
MAX_ITEMS = 32
MAX_ENTRIES = 24
MAX_INTEGER = 2**53


class WireError(ValueError):
    """Bytes that are no message; the text says why."""


# Values of the header.


class Only(NamedTuple):
    """A condition on a value of the field's type (or of type `also`), and the error's text."""

    holds: Callable[[Any], bool]
    wrong: str
    also: type | None = None


class AtMost(NamedTuple):
    """How many items a tuple, or entries a map may have."""

    most: int


Integer = Annotated[int, Only(lambda v: 0 <= v <= MAX_INTEGER, "not a whole number in range")]
Positive = Annotated[int, Only(lambda v: 1 <= v <= MAX_INTEGER, "not a whole number from 1 on")]
Number = Annotated[float, Only(math.isfinite, "not a finite number", also=int)]
AnyNumber = Annotated[float, Only(lambda _: True, "not a number")]
"""A loss: it may be infinite or NaN, and the receiver names its sender."""
Flag = Annotated[bool, Only(lambda _: True, "not true or false")]
Text = Annotated[
    str, Only(lambda v: len(v) <= TEXT_LENGTH and v.isprintable(), "not a short printable text")
]
Name = Annotated[str, Only(lambda v: NAME.fullmatch(v) is not None, f"not a name: {NAME_RULE}")]
Dtype = Annotated[str, Only(lambda v: v in ("float32", "float64"), "neither float32 nor float64")]
Digest = Annotated[bytes, Only(lambda v: len(v) == DIGEST_BYTES, "not a digest of 4 bytes")]
Texts = Annotated[Mapping[Text, Text], AtMost(MAX_ENTRIES)]
Counts = Annotated[Mapping[Text, Integer], AtMost(MAX_ENTRIES)]


# Fields that are frames of their own, in the order of the message's fields. How long a frame may be
# follows from the run's dimensions (`size`) and from the message's fields before it (`values`).


class Tensor(NamedTuple):
    """A frame of exactly so many bytes; of at most so many where it is not `exact`."""

    length: Callable[[Any, Mapping[str, Any]], int]
    exact: bool = True

    def pack(self, value: Any) -> Any:
        return value

    def unpack(self, frame: Frame, size: Any, values: Mapping[str, Any]) -> Any:
        length = self.length(size, values)
        if len(frame) > length or (self.exact and len(frame) < length):
            raise WireError(f"{len(frame)} bytes, expected {length}")
        return frame


class Records(NamedTuple):
    """A tuple of at most so many NamedTuples of integers, each a number of 64 bits."""

    type: type[tuple[int, ...]]
    most: Callable[[Any], int]

    def pack(self, value: Sequence[Sequence[int]]) -> Frame:
        numbers = [number for record in value for number in record]
        return struct.pack(f"<{len(numbers)}q", *numbers)

    def unpack(self, frame: Frame, size: Any, _: Mapping[str, Any]) -> tuple[Any, ...]:
        width = len(self.type.__annotations__)
        count, rest = divmod(len(frame), 8 * width)
        if rest or count > self.most(size):
            raise WireError(f"{len(frame)} bytes, {self.most(size)} records of {8 * width} allowed")
        numbers = struct.unpack(f"<{count * width}q", frame)
        if count and not 0 <= min(numbers) <= max(numbers) <= MAX_INTEGER:
            raise WireError("not a whole number in range")
        return tuple(self.type(*numbers[i : i + width]) for i in range(0, len(numbers), width))


# The header of a packed message: all its fields, one after the other.
PACKED = {Name: "64s", Integer: "Q", Flag: "?", Number: "d", Digest: f"{DIGEST_BYTES}s"}
