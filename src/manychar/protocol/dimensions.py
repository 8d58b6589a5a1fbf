"""The run's sizes, from which the lengths of all tensors in messages follow."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, ClassVar, dataclass_transform

from manychar.numerics.option import OptionError
from manychar.protocol import field_types as field
from manychar.protocol.field_types import Frame

MOST_GIB = 2


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Structure:
    """The base of what has fields on the wire: frozen dataclasses, made by keywords.

    The header of a `packed` message, of which there are many a step, is a fixed struct with this
    number; its last fields, `told`, are those that only its sender knows.
    """

    packed: ClassVar[int] = 0
    told: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, packed: int = 0, told: tuple[str, ...] = ()) -> None:
        cls.packed, cls.told = packed, told
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)


class Dimensions(Structure):
    """The run's sizes: the length of every tensor frame follows from them."""

    vocabulary_size: field.Positive
    hidden: field.Positive
    seq_length: field.Positive
    streams: field.Positive
    shards: field.Positive
    dtype: field.Dtype

    @functools.cached_property
    def value_bytes(self) -> int:
        return {"float32": 4, "float64": 8}[self.dtype]

    @functools.cached_property
    def parameters_bytes(self) -> int:
        """Bytes of the weights, and of a gradient: Wxh, Whh, Why, bh, by as one vector."""
        V, H = self.vocabulary_size, self.hidden
        return self.value_bytes * (H * (2 * V + H + 1) + V)

    @functools.cached_property
    def hidden_bytes(self) -> int:
        """Bytes of one shard's hidden state, (B, H)."""
        return self.value_bytes * self.streams * self.hidden

    @functools.cached_property
    def id_bytes(self) -> int:
        """Bytes of one character's id: the narrowest of 1, 2 and 4 that holds the vocabulary."""
        return 1 if self.vocabulary_size <= 2**8 else 2 if self.vocabulary_size <= 2**16 else 4

    @functools.cached_property
    def ids_bytes(self) -> int:
        """Bytes of one batch, (B, T + 1)."""
        return self.id_bytes * self.streams * (self.seq_length + 1)


def check_sizes(size: Dimensions) -> None:
    """Raise OptionError where the tensors of a step exceed the limit: processes hold them whole."""
    parts = {
        ("the weights", "--hidden"): size.parameters_bytes,
        ("a step's hidden states", "--hidden or --streams"): size.shards * size.hidden_bytes,
        ("a step's characters", "--seq-length or --streams"): size.shards * size.ids_bytes,
    }
    for (what, flags), count in parts.items():
        if count > MOST_GIB * 2**30:
            takes = f"{what} take {count / 2**30:,.1f} GiB"
            raise OptionError(f"{takes}; allowed: at most {MOST_GIB} GiB: give a smaller {flags}")


def most_units(size: Dimensions) -> int:
    """Return how many units one heartbeat can list: within a step, leases are added."""
    return 4 * size.shards + 4


def shards_in(values: Mapping[str, int]) -> int:
    """Return the number of shards of a message from `first` to `last`."""
    return values["last"] - values["first"] + 1


ParametersFrame = Annotated[Frame, field.Tensor(lambda size, _: size.parameters_bytes)]
HiddenFrame = Annotated[
    Frame, field.Tensor(lambda size, values: shards_in(values) * size.hidden_bytes)
]
IdsFrame = Annotated[Frame, field.Tensor(lambda size, values: shards_in(values) * size.ids_bytes)]
