"""What a server is started with: which run, in which term, from which state, and how."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

from manychar.numerics.corpus import Streams
from manychar.numerics.option import check, option
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import TrainingState
from manychar.protocol.messages import Dimensions

MOST = 10**15
_option = functools.partial(option, roles=("train", "server"))
_count = functools.partial(_option, least=0, most=MOST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """How a run is carried out, config.json's `operation`. No bit of the weights depends on it.

    The exception is `allow_mixed_numerics`: where a worker with another fingerprint is admitted,
    the run is marked as mixed. `stop_when_no_better` decides how many steps are done, not what a
    step computes.
    """

    steps: int = _count(8_000, "Total steps; 0: until Ctrl-C.")
    checkpoint_every: int = _count(1000, "Steps; 0: first and last only.")
    keep_checkpoints: int = _count(20, "How many, beside step 0; 0: all.")
    sample_every: int = _count(1000, "Steps; 0: only at the end.")
    sample_length: int = _count(200, "Characters; 0: no samples.")
    workers: int = option(2, "Worker processes.", roles=("train",), least=1, most=1024)
    lease_timeout: float = _option(
        2.0,
        "Seconds of silence after which a worker is lost.",
        least=0.1,
        most=86_400,
        unit="seconds",
    )
    on_disk_error: Literal["stop", "continue"] = _option(
        "stop", "When a checkpoint cannot be written."
    )
    stop_when_no_better: int = _count(
        0, "End after so many checkpoints without a new best; 0: never."
    )
    allow_mixed_numerics: bool = _option(
        default=False,
        text="Admit workers whose arithmetic gives other bits; the run is marked as such.",
    )

    def __post_init__(self) -> None:
        """Refuse, with an OptionError, what cannot be carried out."""
        check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run as one server takes it up. `banned` gives the reason for the ban by worker's name.

    `seconds_before` is how long the run took before this server started. `validation_losses` are
    the known ones in nats a character, by step; `unvalidated` are the steps of the checkpoints on
    disk that have none yet.
    """

    run: str
    term: int
    definition: Definition
    operation: Operation
    streams: Streams
    vocabulary: str
    state: TrainingState
    fingerprint: str
    libraries: Mapping[str, str]
    banned: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds_before: float = 0.0
    validation_losses: Mapping[int, float] = dataclasses.field(default_factory=dict)
    unvalidated: tuple[int, ...] = ()

    @property
    def dimensions(self) -> Dimensions:
        """The run's sizes."""
        return dimensions_of(self.definition, len(self.vocabulary))


def dimensions_of(definition: Definition, vocabulary_size: int) -> Dimensions:
    """Return the sizes of a run of this definition."""
    return Dimensions(
        vocabulary_size=vocabulary_size,
        hidden=definition.hidden,
        seq_length=definition.seq_length,
        streams=definition.streams,
        shards=definition.shards,
        dtype=definition.dtype,
    )
