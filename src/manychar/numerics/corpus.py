"""Text -> ids -> streams: which characters a shard reads at which step.

The vocabulary is the text's distinct characters in code-point order, an id is an index into it, and
the position in the text is a pure function of (shard, step).
"""

import dataclasses
import functools
import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.option import OptionError, counted

CODE_POINTS = 0x110000


def id_dtype(vocabulary_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the narrowest unsigned little-endian type that holds every id."""
    return np.min_scalar_type(vocabulary_size - 1).newbyteorder("<")


class CharacterSet:
    """The distinct characters of a text that is read piece by piece, and its length."""

    def __init__(self) -> None:
        self.length = 0
        self._is_present = np.zeros(CODE_POINTS, dtype=bool)

    def add(self, text: str) -> None:
        self.length += len(text)
        codes = _code_points(text)
        if not np.take(self._is_present, codes).all():
            self._is_present[codes] = True

    @property
    def vocabulary(self) -> str:
        """The characters in code-point order."""
        return "".join(map(chr, np.flatnonzero(self._is_present)))


class Encoder:
    """Turns pieces of a text into ids. Characters that the vocabulary lacks are only counted."""

    def __init__(self, vocabulary: str) -> None:
        codes = _code_points(vocabulary)
        self.unknown: Counter[str] = Counter()
        self._is_known = np.zeros(CODE_POINTS, dtype=bool)
        self._is_known[codes] = True
        self._id_of = np.zeros(CODE_POINTS, dtype=id_dtype(len(vocabulary)))
        self._id_of[codes] = np.arange(len(vocabulary))

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        codes = _code_points(text)
        known = np.take(self._is_known, codes)
        if not known.all():
            self.unknown.update(map(chr, codes[~known].tolist()))
            codes = codes[known]
        return np.take(self._id_of, codes)


def decode(vocabulary: str, ids: NDArray[np.unsignedinteger]) -> bytes:
    """Return the UTF-8 of ids. Raises IndexError where one is out of range."""
    codes = _code_points(vocabulary)
    if vocabulary.isascii():  # twice as fast
        return np.take(codes.astype("u1"), ids).tobytes()
    return np.take(codes, ids).tobytes().decode("utf-32-le").encode()


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What one shard reads at one step.

    `ids` has shape (B, T + 1): inputs are the first T columns, targets the last T. `fresh` says
    that the text starts again here, so the computation begins from a zero hidden state.
    """

    ids: NDArray[np.unsignedinteger]
    fresh: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Streams:
    """The corpus cut into S * B streams of equal length; shard i owns streams i*B … i*B + B-1.

    `ids` are those of the whole text, shape (N,). Raises OptionError where a stream would be
    shorter than the T + 1 characters of one step.
    """

    ids: NDArray[np.unsignedinteger]
    shards: int
    streams: int
    seq_length: int
    validation: float = 0.0
    length: int = dataclasses.field(init=False)
    _shards: NDArray[np.unsignedinteger] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the length of a stream; remainder and validation text are not read."""
        if self.validation > 0 and len(self.validation_ids) < 2:
            raise OptionError(
                f"--validation {self.validation} of {counted(len(self.ids), 'character')} leaves"
                f" {len(self.validation_ids)} for validation: at least 2 are needed"
            )
        characters = len(self.ids) - len(self.validation_ids)
        length = characters // (self.shards * self.streams)
        if length < self.seq_length + 1:
            raise OptionError(self._too_short(characters))
        object.__setattr__(self, "length", length)
        read = self.ids[: self.shards * self.streams * length]
        object.__setattr__(self, "_shards", read.reshape(self.shards, self.streams, length))

    def _too_short(self, characters: int) -> str:
        left = f"--validation {self.validation} of {counted(len(self.ids), 'character')} leaves"
        found = left if self.validation > 0 else "the text has"
        needed = self.shards * self.streams * (self.seq_length + 1)
        verb = "needs" if self.shards == 1 else "need"
        flags = " or ".join(self._flags_that_help(characters))
        return (
            f"{found} {counted(characters, 'character')}, and {counted(self.shards, 'shard')} of"
            f" {counted(self.streams, 'stream')} of {self.seq_length} + 1 characters {verb}"
            f" {needed:,}: use a longer text{', or a smaller ' * bool(flags)}{flags}"
        )

    def _flags_that_help(self, characters: int) -> list[str]:
        """Return the flags of which a smaller value makes the text long enough."""
        streams, piece = self.shards * self.streams, self.seq_length + 1
        least = {
            "--validation": streams * piece <= len(self.ids) > characters,
            "--seq-length": streams * 2 <= characters and piece > 2,
            "--shards times --streams": piece <= characters and streams > 1,
        }
        alone = [name for name, helps in least.items() if helps]
        return alone or ["--shards times --streams times --seq-length"] * (characters > 1)

    @property
    def validation_ids(self) -> NDArray[np.unsignedinteger]:
        """The end of the text, which no stream reads: the validation text."""
        return self.ids[len(self.ids) - int(len(self.ids) * self.validation) :]

    @functools.cached_property
    def steps_per_pass(self) -> int:
        """K, the steps until a stream starts again: min-char-rnn's p + T + 1 >= length."""
        return max(1, math.ceil((self.length - self.seq_length - 1) / self.seq_length))

    def is_fresh(self, step: int) -> bool:
        """Whether the text starts again at this step, in every stream."""
        return step % self.steps_per_pass == 0

    def ids_at(self, first: int, last: int, step: int) -> NDArray[np.unsignedinteger]:
        """Return what the shards `first` … `last` read at `step`, (n, B, T + 1): a copy."""
        start = step % self.steps_per_pass * self.seq_length
        return self._shards[first : last + 1, :, start : start + self.seq_length + 1].copy()

    def batch_at(self, shard: int, step: int) -> Batch:
        return Batch(ids=self.ids_at(shard, shard, step)[0], fresh=self.is_fresh(step))
