"""What a server is started with: which run, in which term, from which state, and how."""

import dataclasses
from collections.abc import Mapping

from manychar.numerics.corpus import Streams
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import TrainingState
from manychar.protocol.messages import Dimensions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """How a run is carried out. Nothing here can change a bit of the weights.

    `steps` is the total, 0 for no end; intervals are in steps, 0 for never; `silence` is the
    lease timeout in seconds; `seconds_before` is what the run has taken before this server started.
    `allow_mixed` lets in workers with other arithmetic (then the bits do depend on who comes);
    `go_on_without_disk` trains on when a checkpoint cannot be written. After
    `stop_when_no_better` checkpoints without a new best loss on the held-out text the run ends
    (this does not change a bit either, only how many steps are done); 0 for never.
    """

    steps: int
    checkpoint_every: int
    sample_every: int
    silence: float
    seconds_before: float = 0.0
    allow_mixed: bool = False
    go_on_without_disk: bool = False
    stop_when_no_better: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run as one server takes it up. `banned` says of each name why it may not come.

    `verdicts` are the checkpoints' losses on the held-out text that are known, nats a character by
    step; `unjudged` are the steps of those on disk whose loss is not.
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
        delay=definition.delay,
        dtype=definition.dtype,
    )
