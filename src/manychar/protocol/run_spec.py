"""What a server is started with: which run, in which term, from which state, and how."""

import dataclasses
import functools
from collections.abc import Mapping

from manychar.numerics.corpus import Streams
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import TrainingState
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.messages import RunAndTerm
from manychar.protocol.run_operation import Operation


# Many fields: all that a server is started with, in one value.
@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What one server needs to serve a run. `banned` gives the reason for the ban by worker's name.

    `session` tells two servers apart that have the same term: the run's directory was copied.
    `seconds_before` is how long the run took before this server started. `validation_losses` are
    the known ones in nats a character, by step; `unvalidated` are the steps of the checkpoints on
    disk that have none yet. `relays` are the instances of those above the workers, at a relay.
    `started_workers` is how many the server's parent starts, where it has one.
    """

    run_id: str
    term: int
    definition: Definition
    operation: Operation
    corpus: Streams
    vocabulary: str
    state: TrainingState
    fingerprint: str
    libraries: Mapping[str, str]
    banned: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds_before: float = 0.0
    validation_losses: Mapping[int, float] = dataclasses.field(default_factory=dict)
    unvalidated: tuple[int, ...] = ()
    session: int = 0
    relays: str = ""
    started_workers: int = 0

    @functools.cached_property
    def dimensions(self) -> Dimensions:
        return dimensions_of(self.definition, len(self.vocabulary))

    @functools.cached_property
    def run_and_term(self) -> RunAndTerm:
        return {"run_id": self.run_id, "term": self.term, "session": self.session}


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
