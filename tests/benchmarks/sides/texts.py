"""The text and the run as a side takes them."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from manychar.numerics.corpus import Streams
from manychar.numerics.run_definition import Definition
from tests.benchmarks.task import Task
from tests.encoding import encode


def read_ids(path: str) -> tuple[int, NDArray[Any]]:
    """Return (number of distinct characters, ids) of a text file."""
    vocabulary, ids = encode(Path(path).read_bytes().decode())
    return len(vocabulary), ids


def definition_of(task: Task) -> Definition:
    """Return a run with the task's sizes, and the default recipe for them."""
    names = ("hidden", "seq_length", "shards", "streams", "dtype")
    sizes = {name: getattr(task, name) for name in names}
    return Definition(corpus_sha256="0" * 64, **sizes)


def streams_of(task: Task) -> tuple[int, Streams]:
    """Return (number of distinct characters, the text cut into the run's streams)."""
    vocabulary_size, ids = read_ids(task.text)
    return vocabulary_size, Streams(ids, task.shards, task.streams, task.seq_length)
