"""What a fleet does and holds: the arithmetic, the tables and the picture of deploy/README.md.

`python -m tests.deploy.operating` writes them (10 minutes, most of them for the simulation).
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from manychar.fleet.capacity import Fleet, predict
from manychar.numerics.run_definition import choose_streams
from manychar.protocol.aggregation import INPUT_BYTES, STEPS_COMPARED
from manychar.protocol.dimensions import Dimensions
from tests.deploy.recipes import DEPLOY
from tests.simulation.virtual_fleet import Luck, VirtualFleet

PAGE, PICTURE = DEPLOY / "README.md", DEPLOY / "speed.svg"
BEGIN, END = "<!-- begin: tables -->", "<!-- end: tables -->"
BEGIN_SIMULATED, END_SIMULATED = "<!-- begin: simulated -->", "<!-- end: simulated -->"
VOCABULARY, STREAMS, SEQ_LENGTH = 103, 32, 25
HIDDEN = (100, 256, 512, 1024, 2048, 4096)
WORKERS = (1, 10, 100, 1_000, 10_000)
GBITS = (1, 10, 100)
SIMULATED_WORKERS = (1, 10, 100, 1_000, 10_000)
RELAYS = {100: 10, 1_000: 32, 10_000: 100}  # about as many as workers behind each
UNEQUAL = {  # more computing for each byte than in the other tables, or the exchange hides it
    "10 workers, H 2,048, B 128": (10, 2048, 128),
    "100 workers, H 512, B 1,024": (100, 512, 1024),
}
LUCK = {
    "speeds spread by 10 %": Luck(spread=0.1),
    "speeds spread by 30 %": Luck(spread=0.3),
    "each worker fails once an hour": Luck(failures=1 / 3600),
    "each worker fails every ten minutes": Luck(failures=1 / 600),
}
SETTLED, STEPS = 20, 40
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


def recipe_size(characters: int, *, hidden: int, shards: int) -> Dimensions:
    """Return the sizes of a recipe's run: the defaults but for what it names."""
    streams = choose_streams(hidden, shards)
    size = dimensions(hidden, shards)
    return dataclasses.replace(size, vocabulary_size=characters, streams=streams)


def server_memory(size: Dimensions, workers: int) -> float:
    """Return what to allow a server, in bytes."""
    inputs = size.parameters_bytes + size.shards * size.hidden_bytes
    kept = min(STEPS_COMPARED, max(1, INPUT_BYTES // inputs))
    parameters = (18 + kept + 2 * workers) * size.parameters_bytes
    return 70 * MIB + parameters + 14 * size.shards * size.hidden_bytes + 5 * unrolled(size)


def worker_memory(size: Dimensions, held: int) -> float:
    """Return what to allow a worker that holds at most so many shards, in bytes."""
    parameters = (10 + (held - 1).bit_length()) * size.parameters_bytes
    return 60 * MIB + parameters + 4 * held * size.hidden_bytes + 6 * unrolled(size)


def relay_memory(size: Dimensions, workers: int) -> float:
    """Return what to allow a relay of so many workers that holds all shards, in bytes."""
    parameters = (9 + 2 * workers) * size.parameters_bytes
    return 65 * MIB + parameters + 26 * size.shards * size.hidden_bytes


def validation_memory(size: Dimensions) -> float:
    """Return what to allow the process that computes the validation losses, in bytes."""
    return 65 * MIB + 7 * size.parameters_bytes + size.shards * size.hidden_bytes


def unrolled(size: Dimensions) -> int:
    """Return the bytes of one shard's hidden states and outputs at every position of a step."""
    positions = size.streams * size.seq_length
    return size.value_bytes * positions * (size.hidden + size.vocabulary_size)


def fleet(hidden: int, workers: int, gbits: float, relays: int = 0) -> Fleet:
    """Return a fleet of the tables: a shard for each worker, with keys."""
    size = dimensions(hidden, workers)
    return Fleet(size=size, workers=workers, gbits=gbits, relays=relays)


def tables() -> str:
    """Return the tables that follow from formulas."""
    heads = [f"{workers:,} worker{'s' if workers > 1 else ''}" for workers in WORKERS]
    weights = [readable(dimensions(hidden, 1).parameters_bytes) for hidden in HIDDEN]
    speeds = [[_speeds(hidden, n) for n in WORKERS] for hidden in HIDDEN]
    relayed = [[_speeds(hidden, n, RELAYS[n]) for n in RELAYS] for hidden in HIDDEN]
    behind = [f"{n:,} behind {relays} relays" for n, relays in RELAYS.items()]
    sizes = [[dimensions(hidden, workers) for workers in WORKERS] for hidden in HIDDEN]
    held = [[readable(server_memory(size, size.shards)) for size in row] for row in sizes]
    return "\n\n".join(
        [
            "Steps a second at 1 · 10 · 100 Gbit/s, with keys:",
            _table(["H", "weights", *heads], weights, speeds),
            "The same with relays, each with such a link:",
            _table(["H", "weights", *behind], weights, relayed),
            "Memory to allow the server:",
            _table(["H", "weights", *heads], weights, held),
        ]
    )


def _speeds(hidden: int, workers: int, relays: int = 0) -> str:
    each = (predict(fleet(hidden, workers, gbits, relays)).seconds for gbits in GBITS)
    return " · ".join(map(steps, each))


def simulated() -> str:
    """Return the table of what only the simulation tells."""
    rows = [["", *LUCK], ["---"] * (1 + len(LUCK))]
    rows += [[name, *(f"{slowdown(name, each):.2f}x" for each in LUCK)] for name in UNEQUAL]
    return "\n".join(_lines(rows))


def slowdown(name: str, luck: str) -> float:
    """Return how many times as long a step takes as with equal workers that do not fail."""
    workers, hidden, streams = UNEQUAL[name]
    size = Dimensions(
        vocabulary_size=VOCABULARY,
        hidden=hidden,
        seq_length=SEQ_LENGTH,
        streams=streams,
        shards=workers,
        dtype="float32",
    )
    unequal = Fleet(size=size, workers=workers, gbits=100, keys=False)
    found = VirtualFleet(unequal, luck=LUCK[luck]).run(settled=SETTLED, steps=STEPS)
    return found.seconds / predict(unequal).seconds


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


def steps(seconds: float) -> str:
    """Return steps a second with two digits, in plain decimals."""
    rate = 1 / seconds
    digits = 4 if rate < 0.01 else 3 if rate < 0.1 else 2 if rate < 1 else 1 if rate < 10 else 0
    return f"{rate:,.{digits}f}"


def draw(hidden: int = 512) -> None:
    """Draw the formula's speeds as lines, and the simulation's as dots."""
    import matplotlib as mpl  # noqa: PLC0415 - only here
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    from manychar.observability.plot import SETTINGS  # noqa: PLC0415

    with mpl.rc_context({**SETTINGS, "text.parse_math": True}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for colour, gbits in enumerate(GBITS):
            rates = [1 / predict(fleet(hidden, n, gbits)).seconds for n in WORKERS]
            axes.plot(WORKERS, rates, color=f"C{colour}", label=f"{gbits} Gbit/s")
            dots = [
                1 / VirtualFleet(fleet(hidden, n, gbits)).run().seconds for n in SIMULATED_WORKERS
            ]
            axes.plot(SIMULATED_WORKERS, dots, "o", color=f"C{colour}")
            behind = [fleet(hidden, n, gbits, RELAYS[n]) for n in RELAYS]
            rates = [1 / predict(each).seconds for each in behind]
            axes.plot([*RELAYS], rates, "--", color=f"C{colour}", label="with relays")
            dots = [1 / VirtualFleet(each).run().seconds for each in behind]
            axes.plot([*RELAYS], dots, "x", color=f"C{colour}")
        axes.set(xscale="log", yscale="log", xlabel="workers, one shard each", ylabel="steps/s")
        axes.set_title(f"H {hidden}, B {STREAMS}, with keys: lines by formula, marks simulated")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(PICTURE, metadata={"Date": None})


def replaced(text: str, begin: str, end: str, inside: str) -> str:
    """Return the text with what stands between two lines replaced."""
    before, rest = text.split(begin)
    return f"{before}{begin}\n{inside}\n{end}{rest.split(end)[1]}"


def write(page: Path = PAGE) -> int:
    """Write the tables into the page, and the picture."""
    text = replaced(page.read_text(encoding="utf-8"), BEGIN, END, tables())
    text = replaced(text, BEGIN_SIMULATED, END_SIMULATED, simulated())
    page.write_text(text, encoding="utf-8")
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(write())
