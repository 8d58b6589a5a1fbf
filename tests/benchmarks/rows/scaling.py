"""Study: how speed grows with workers, and bytes a step and memory with size; draws a figure."""

import os
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.asking import Side
from tests.benchmarks.memory import peaks
from tests.benchmarks.plan import MissingError, Plan, require
from tests.benchmarks.plot import PATH, draw
from tests.benchmarks.rounds import Figures, Measured, interleave, tell
from tests.benchmarks.running import Fleets
from tests.benchmarks.tables import number, spread, table

WORKERS, SHARDS, STREAMS = (1, 2, 4, 8), 8, 16
SIZES = (64, 128, 256, 512, 1024, 2048)


def run(plan: Plan) -> Iterator[str]:
    """Yield a table by workers and one by size, and draw both."""
    cores = _cores()
    speeds = _speeds(plan)
    messages = {hidden: _messages(plan, hidden) for hidden in (100, *SIZES)}
    traffic = {workers: _bytes_a_step(messages[100], workers) for workers in WORKERS}
    yield f"By workers: H 100, S {SHARDS}, B {STREAMS}, {cores} cores, numerics native:\n"
    yield table(
        ("workers", "characters a second", "KB a step"),
        [(str(n), spread(speeds[n]), number(traffic[n] / 1e3)) for n in WORKERS],
    )
    memory = {}
    if Path("/proc/self/status").exists():
        for hidden in SIZES:
            memory[hidden] = peaks(plan, hidden)
            tell(f"H {hidden}: {memory[hidden]} MiB")
    else:
        yield "Memory is left out: this system has no /proc.\n"
    yield f"By size: one worker, S 4, B {STREAMS}; MiB resident at most, bytes of a message:\n"
    head = ("H", "server, MiB", "worker, MiB", "weights, KB", "gradient, KB")
    yield table(head, [_by_size(hidden, messages[hidden], memory) for hidden in SIZES])
    yield (
        "Bytes are those of the real messages, encoded: S gradients, and weights with their ids"
        " once for each worker.\n"
    )
    try:
        require("matplotlib")
    except MissingError as error:
        yield f"The figure is left out: {error}\n"
        return
    draw(speeds, traffic, memory, cores)
    yield f"![How it grows](tests/benchmarks/{PATH.name})\n"


def _speeds(plan: Plan) -> dict[int, Figures]:
    sides: dict[str, Measured] = {
        str(workers): Fleets(plan.text, plan.scratch, plan.seconds, _flags(workers))
        for workers in WORKERS
    }
    found = interleave(sides, plan.rounds)
    return {workers: found[str(workers)] for workers in WORKERS}


def _flags(workers: int) -> list[str]:
    sizes = ["--shards", str(SHARDS), "--streams", str(STREAMS)]
    return ["--workers", str(workers), "--numerics", "native", *sizes]


def _messages(plan: Plan, hidden: int) -> dict[str, int]:
    with Side("traffic", plan.task(hidden=hidden, streams=STREAMS)) as side:
        side.until_ready()
        lengths: dict[str, int] = side.ask()
        return lengths


def _bytes_a_step(lengths: dict[str, int], workers: int) -> int:
    return SHARDS * (lengths["gradient"] + lengths["unit"]) + workers * lengths["weights"]


def _by_size(
    hidden: int, lengths: dict[str, int], memory: dict[int, dict[str, float]]
) -> tuple[str, ...]:
    of_roles = memory.get(hidden, {})
    mib = [number(of_roles[role]) if role in of_roles else "" for role in ("server", "worker")]
    return (str(hidden), *mib, *(number(lengths[name] / 1e3) for name in ("weights", "gradient")))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
