"""What a fleet moves and holds, by formula: the arithmetic and the tables of deploy/README.md.

`python -m tests.deploy.operating` writes the tables into it.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from manychar.protocol.aggregation import INPUT_BYTES, STEPS_COMPARED
from manychar.protocol.dimensions import Dimensions
from tests.deploy.recipes import DEPLOY

PAGE = DEPLOY / "README.md"
BEGIN, END = "<!-- begin: tables -->", "<!-- end: tables -->"
VOCABULARY, STREAMS, SEQ_LENGTH = 103, 32, 25
HIDDEN = (100, 256, 512, 1024, 2048, 4096)
WORKERS = (1, 10, 100, 1_000, 10_000)
TEN_GBIT = 1.25e9 * 1448 / 1538  # what a 1,500-byte packet leaves of it to the payload
WITH_KEYS = 0.8e9  # both directions together: one thread encrypts and decrypts
RESULT_HEADER, WEIGHTS_HEADER, SHARD_BYTES = 160, 128, 12
MIB = 2**20


def dimensions(hidden: int, workers: int) -> Dimensions:
    """Return the sizes of the tables' runs: a shard for each worker, the rest the defaults."""
    return Dimensions(
        vocabulary_size=VOCABULARY,
        hidden=hidden,
        seq_length=SEQ_LENGTH,
        streams=STREAMS,
        shards=workers,
        dtype="float32",
    )


def inward(size: Dimensions, workers: int, sums: int) -> int:
    """Return the bytes that a server is sent in a step: the sums of the ranges' covers."""
    results = sums * size.parameters_bytes + workers * RESULT_HEADER
    return results + size.shards * (size.hidden_bytes + SHARD_BYTES)


def outward(size: Dimensions, workers: int) -> int:
    """Return the bytes that it sends: weights to each worker that holds a range, ids of shards."""
    return workers * (size.parameters_bytes + WEIGHTS_HEADER) + size.shards * size.ids_bytes


def server_memory(size: Dimensions, workers: int) -> float:
    """Return what to allow a server, in bytes."""
    inputs = size.parameters_bytes + size.shards * size.hidden_bytes
    kept = min(STEPS_COMPARED, max(1, INPUT_BYTES // inputs))
    parameters = (20 + kept + 2 * workers) * size.parameters_bytes
    return 70 * MIB + parameters + 14 * size.shards * size.hidden_bytes + 5 * unrolled(size)


def worker_memory(size: Dimensions, held: int) -> float:
    """Return what to allow a worker that holds at most so many shards, in bytes."""
    parameters = (10 + (held - 1).bit_length()) * size.parameters_bytes
    return 60 * MIB + parameters + 4 * held * size.hidden_bytes + 6 * unrolled(size)


def unrolled(size: Dimensions) -> int:
    """Return the bytes of one shard's hidden states and outputs at every position of a step."""
    positions = size.streams * size.seq_length
    return size.value_bytes * positions * (size.hidden + size.vocabulary_size)


def inward_of(size: Dimensions) -> int:
    """Return the bytes towards the server where each worker has one shard."""
    return inward(size, workers=size.shards, sums=size.shards)


def tables() -> str:
    """Return the tables."""
    rows = [(hidden, [dimensions(hidden, workers) for workers in WORKERS]) for hidden in HIDDEN]
    heads = [f"{workers:,} worker{'s' if workers > 1 else ''}" for workers in WORKERS]
    weights = [readable(sizes[0].parameters_bytes) for _, sizes in rows]
    moved = [[readable(inward_of(size)) for size in sizes] for _, sizes in rows]
    times = [
        [
            f"{seconds(max(inward_of(size), outward(size, size.shards)) / TEN_GBIT)}"
            f" · {seconds((inward_of(size) + outward(size, size.shards)) / WITH_KEYS)}"
            for size in sizes
        ]
        for _, sizes in rows
    ]
    held = [[readable(server_memory(size, size.shards)) for size in sizes] for _, sizes in rows]
    return "\n\n".join(
        [
            "Bytes a step towards the server (up to a tenth fewer go the other way):",
            _table(["H", "weights", *heads], weights, moved),
            "Seconds a step that they take at least, at 10 Gbit/s without keys · with keys on the"
            "\nmachine of the README's figures:",
            _table(["H", "weights", *heads], weights, times),
            "Memory to allow the server:",
            _table(["H", "weights", *heads], weights, held),
        ]
    )


def _table(heads: Sequence[str], weights: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rows = [
        [str(hidden), weight, *row]
        for hidden, weight, row in zip(HIDDEN, weights, cells, strict=True)
    ]
    return "\n".join(_lines([list(heads), ["---"] * len(heads), *rows]))


def _lines(rows: list[list[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(row)} |"


def readable(count: float) -> str:
    """Return bytes with three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def seconds(time: float) -> str:
    """Return a time with two digits, in plain decimals."""
    if time < 0.001:
        return "< 0.001"
    digits = 4 if time < 0.01 else 3 if time < 0.1 else 2 if time < 1 else 1 if time < 10 else 0
    return f"{time:,.{digits}f}"


def write(page: Path = PAGE) -> int:
    """Write the tables into the page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(write())
