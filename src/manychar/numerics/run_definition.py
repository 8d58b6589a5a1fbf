"""A run's definition: everything that can change a bit of the weights, and nothing else.

It is written to `config.json` and to every checkpoint; `operation` cannot change the result.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from manychar.numerics.option import Formula, OptionError, check, flag, option

NORMAL_NUMBERS = {"float32": (2.0**-126, 2.0**127), "float64": (2.0**-1022, 2.0**1023)}

_option = functools.partial(option, roles=("train", "server", "equivalence"))
_count = functools.partial(_option, least=1, most=65_536)
_size = functools.partial(_count, roles=("train", "server", "equivalence", "plan"))


def choose_streams(hidden: int, shards: int) -> int:
    """Return B for 64 total streams; for 32 from 256 hidden units on, as they need more steps."""
    return max(1, (64 if hidden < 256 else 32) // shards)


def choose_learning_rate(hidden: int, shards: int, streams: int) -> float:
    """Return min-char-rnn's rate for its 100 hidden units, or for one stream; for more, less.

    Adagrad's first steps move every weight by the whole rate, so that the input of a hidden unit
    changes by the rate times their number; above 512 units the rate falls faster than that.
    `python -m tests.benchmarks recipe` has the study.
    """
    if shards * streams == 1:
        return 0.1
    root = math.sqrt(min(1.0, 100 / hidden, 51_200 / hidden**2))
    return 0.1 * root * math.sqrt(root)  # the same bits everywhere, which `**` does not promise


def choose_warmup(hidden: int, shards: int, streams: int) -> int:
    """Return H steps between 100 and 400; for one stream none, which is min-char-rnn's recipe."""
    return 0 if shards * streams == 1 else min(400, max(100, hidden))


# More fields than elsewhere: all that a bit of the weights depends on.
@dataclasses.dataclass(frozen=True, kw_only=True)
class Definition:
    """The hyperparameters and the corpus of a run; defaults are min-char-rnn's where it has one.

    `hidden` is H, `seq_length` T, `shards` S, `streams` B (a shard).
    """

    corpus_sha256: str
    initial_weights: str | None = None  # the SHA-256 of those that are not drawn from the seed
    hidden: int = _size(100, "Hidden units; the weights have at most 2 GiB.")
    seq_length: int = _size(25, "Characters a step.")
    shards: int = _count(
        4, "Parts of a step that are computed in parallel; at most as many workers compute."
    )
    streams: int = _size(
        Formula("max(1, 64 // shards); hidden >= 256: max(1, 32 // shards)", choose_streams),
        "Streams of text in a shard.",
    )
    learning_rate: float = _option(
        Formula(
            "0.1 * min(1, 100 / hidden, 51_200 / hidden**2) ** 0.75; one stream: 0.1",
            choose_learning_rate,
        ),
        "Adagrad's learning rate.",
        above=0,
    )
    warmup: int = _option(
        Formula("min(400, max(100, hidden)); one stream: 0", choose_warmup),
        "Steps over which the learning rate rises to its value; 0: none.",
        least=0,
        most=2**53,
    )
    clip: float = _option(5.0, "Bound of each element of the mean gradient.", above=0)
    dtype: Literal["float32", "float64"] = _option("float32", "Precision.")
    seed: int = _option(0, "Seed of the first weights and of samples.", least=0, most=2**53)
    numerics: Literal["portable", "native"] = option(
        "portable",
        "Arithmetic; portable: the same bits on every x86-64 CPU; native: faster.",
        roles=("train", "server", "equivalence", "doctor"),
    )
    validation: float = _option(
        0.0, "Share of the text's end that is kept for validation.", least=0, below=1
    )

    def __post_init__(self) -> None:
        check(self)
        least, most = NORMAL_NUMBERS[self.dtype]
        for name in ("learning_rate", "clip"):
            if not least <= (value := getattr(self, name)) <= most:
                allowed = f"a number between {least:.2g} and {most:.2g}, for --dtype {self.dtype}"
                raise OptionError(f"{flag(name)} is {value!r}; allowed: {allowed}")

    def to_json(self) -> str:
        """Canonical JSON: keys in order, no spaces, floats by their shortest exact form."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build a definition from a file's values. OptionError: a field is missing or unknown."""
        if strange := {*values} ^ {field.name for field in dataclasses.fields(cls)}:
            raise OptionError(f"not the fields of a definition: {', '.join(sorted(strange))}")
        return cls(**values)

    @property
    def total_streams(self) -> int:
        """S * B, the number that the sum over all streams is divided by."""
        return self.shards * self.streams

    @property
    def characters_per_step(self) -> int:
        """Characters that one step reads: S * B * T."""
        return self.total_streams * self.seq_length

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: it rises linearly over the first `warmup` steps.

        Adagrad's first steps move every weight by the whole rate, whatever the gradient: large
        models and large batches diverge from there without a warm-up.
        """
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup))

    def run_id(self, nonce: str) -> str:
        """Name of one run of this definition: its hash and a nonce."""
        return f"{hashlib.sha256(self.to_json().encode()).hexdigest()[:12]}-{nonce}"


def canonical_json(value: object) -> str:
    """One text for one value: keys in order, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
