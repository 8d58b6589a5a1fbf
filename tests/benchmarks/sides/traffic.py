"""Bytes that cross the wire in a step: the real messages of one, encoded and counted."""

from collections.abc import Callable

from manychar.numerics.run_definition import Definition
from manychar.protocol import messages
from manychar.protocol.codec import encode
from manychar.protocol.field_types import DIGEST_BYTES
from manychar.protocol.run_spec import dimensions_of
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task

RUN, STEP = "0123456789ab-01234567", 1000


def prepare(task: Task) -> tuple[str, Callable[[str], dict[str, int]]]:
    """Take nothing; the figure is the bytes of a gradient, and of weights with one unit's ids."""
    V, _ = read_ids(task.text)
    definition = Definition(corpus_sha256="0" * 64, hidden=task.hidden, streams=task.streams)
    size = dimensions_of(definition, V)
    gradient = messages.Gradient(
        run_id=RUN,
        term=1,
        lease=1,
        shard=0,
        step=STEP,
        hidden_digest=bytes(DIGEST_BYTES),
        loss=1.0,
        gradient=bytes(size.parameters_bytes),
        hidden=bytes(size.hidden_bytes),
    )

    def weights(units: int) -> messages.Weights:
        return messages.Weights(
            run_id=RUN,
            term=1,
            version=STEP,
            weights=bytes(size.parameters_bytes),
            units=(messages.Unit(1, 0, STEP, 0),) * units,
            ids=(bytes(size.ids_bytes),) * units,
        )

    def go(_: str) -> dict[str, int]:
        return {
            "gradient": _length(gradient),
            "weights": _length(weights(0)),
            "unit": _length(weights(1)) - _length(weights(0)),
        }

    return "", go


def _length(message: messages.Message) -> int:
    return sum(memoryview(frame).nbytes for frame in encode(message))
