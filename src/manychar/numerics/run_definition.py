"""What a result is a function of: the run's definition.

Everything that can change a bit of the weights stands here, and nothing else does. It is written
to `config.json` and to every checkpoint; `operation` (how many workers, how often a checkpoint)
is kept apart because it cannot change the result.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

FORMAT_VERSION = 1


class DefinitionError(ValueError):
    """A value that no run can have. The message names it and says what is possible."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Definition:
    """The hyperparameters and the corpus of a run; defaults are min-char-rnn's where it has one.

    `hidden` is H, `seq_length` T (characters a step), `shards` S, `streams` B (streams a shard),
    `delay` D (steps between the weights a gradient is taken on and the step that applies it),
    `learning_rate` Adagrad's rate, `clip` the bound of each element of the mean gradient.
    """

    corpus_sha256: str
    hidden: int = 100
    seq_length: int = 25
    learning_rate: float = 0.1
    clip: float = 5.0
    shards: int = 4
    streams: int = 16
    dtype: Literal["float32", "float64"] = "float32"
    seed: int = 0
    delay: int = 0
    numerics: Literal["portable", "native"] = "portable"
    validation: float = 0.0
    format: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuse, with a DefinitionError, what no run can have."""
        for name, low, high in _INTEGERS:
            _require_integer(name, getattr(self, name), low=low, high=high)
        for name in ("learning_rate", "clip", "validation"):
            object.__setattr__(self, name, _as_float(name, getattr(self, name)))
        for name in ("learning_rate", "clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise DefinitionError(f"{_flag(name)} is {value!r}: it takes a number above 0")
        if not 0.0 <= self.validation < 1.0:
            raise DefinitionError(f"--validation is {self.validation!r}: it takes 0 to below 1")
        if not (isinstance(self.corpus_sha256, str) and _SHA256.fullmatch(self.corpus_sha256)):
            raise DefinitionError("corpus_sha256 is not the hash of a text")
        _require_choice("dtype", self.dtype, ("float32", "float64"))
        _require_choice("numerics", self.numerics, ("portable", "native"))
        if type(self.format) is not int or self.format != FORMAT_VERSION:
            raise DefinitionError(
                f"format {self.format!r} is not known here: this manychar reads {FORMAT_VERSION}"
            )

    def to_json(self) -> str:
        """Canonical JSON: keys in order, no spaces, floats by their shortest exact form."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build a definition from outside (a file, the wire); DefinitionError if it is not one."""
        known = {field.name for field in dataclasses.fields(cls)}
        strange = sorted(map(str, set(values) ^ known))
        if strange:
            raise DefinitionError(f"not a definition of this format: {', '.join(strange)}")
        return cls(**values)

    @property
    def total_streams(self) -> int:
        """S * B, the number that the sum over all streams is divided by."""
        return self.shards * self.streams

    @property
    def characters_per_step(self) -> int:
        """Characters that one step reads: S * B * T."""
        return self.total_streams * self.seq_length

    def run_id(self, nonce: str) -> str:
        """Name of one run of this definition: its hash and a nonce."""
        return f"{hashlib.sha256(self.to_json().encode()).hexdigest()[:12]}-{nonce}"


_SHA256 = re.compile(r"[0-9a-f]{64}")
_INTEGERS = (
    ("hidden", 1, 65_536),
    ("seq_length", 1, 65_536),
    ("shards", 1, 65_536),
    ("streams", 1, 65_536),
    ("seed", 0, 2**53),
    ("delay", 0, 64),
)


def canonical_json(value: object) -> str:
    """One text for one value: keys in order, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _as_float(name: str, value: object) -> float:
    """Return the one float of a value, so that equal definitions are one text."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DefinitionError(f"{_flag(name)} is {value!r}: it takes a number")
    try:
        return float(value) + 0.0  # -0.0 becomes 0.0
    except OverflowError:
        raise DefinitionError(f"{_flag(name)} is too large a number") from None


def _require_integer(name: str, value: object, *, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise DefinitionError(f"{_flag(name)} is {value!r}: it takes a whole number {low} … {high}")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DefinitionError(f"{_flag(name)} is {value!r}: it takes {' or '.join(choices)}")
