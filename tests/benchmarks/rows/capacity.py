"""Study: the costs by which a fleet is planned, and whether they predict other fleets.

Costs are fitted to small fleets that are started for it. Then real fleets of the default sizes,
with 1, 2 and 4 workers, are compared with the simulation in virtual time: time on the cores a step.
"""

import contextlib
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manychar.fleet.capacity import Costs, Fleet, predict
from manychar.protocol.dimensions import Dimensions
from tests.benchmarks.asking import SideError
from tests.benchmarks.plan import MissingError, Plan
from tests.benchmarks.rounds import tell
from tests.benchmarks.rows.profile import thread_times
from tests.benchmarks.running import growth, manychar, operation, sizes
from tests.benchmarks.tables import number, table
from tests.benchmarks.task import Task
from tests.commands import until
from tests.simulation.virtual_fleet import VirtualFleet

FITTED = (  # H, S, B, W
    *((100, 1, 1, 1), (100, 3, 1, 3), (100, 1, 16, 1), (100, 1, 64, 1), (100, 8, 4, 1)),
    *((100, 6, 8, 3), (256, 1, 1, 1), (256, 3, 1, 3), (256, 1, 32, 1), (256, 4, 4, 2)),
    *((512, 1, 1, 1), (512, 3, 1, 3), (512, 1, 16, 1), (512, 4, 4, 2)),
)
WITH_KEYS = RELAYED = (512, 3, 1, 3)
CHECKED_SIZES, CHECKED_WORKERS = (100, 256, 512), (1, 2, 4)
WITHIN = 0.2
SETTLED_AT = 100  # steps
TRANSFERS = 4  # of each worker in a step: two messages, each at both ends
ROUNDS_OF_FIT = 5_000
PLAIN, ENCRYPTED, BEHIND_RELAY = "plain", "encrypted", "behind a relay"


@dataclasses.dataclass(frozen=True)
class _Run:
    """A real fleet, and what a step took: in all, and on the cores, in seconds.

    `transfers` are the threads that send and receive, of all processes.
    """

    size: Dimensions
    workers: int
    seconds: float
    server: float
    computing: float
    transfers: float
    relay: float = 0.0


def run(plan: Plan) -> Iterator[str]:
    """Yield the costs, and the table of the fleets that they were not fitted to."""
    if not Path("/proc/self/schedstat").exists():
        raise MissingError("this system has no /proc/PID/schedstat")
    cases = [(_task(plan, *case), case[-1], PLAIN) for case in FITTED]
    cases.append((_task(plan, *WITH_KEYS), WITH_KEYS[-1], ENCRYPTED))
    cases.append((_task(plan, *RELAYED), RELAYED[-1], BEHIND_RELAY))
    checked = [(hidden, workers) for hidden in CHECKED_SIZES for workers in CHECKED_WORKERS]
    cases += [(plan.default_task(hidden), workers, PLAIN) for hidden, workers in checked]
    rounds = [[_measure(plan, *case) for case in cases] for _ in range(plan.rounds)]
    of_fit = len(FITTED) + 2
    *fitted, encrypted, relayed = map(
        _median, zip(*(each[:of_fit] for each in rounds), strict=True)
    )
    real_fleets = map(_median, zip(*(each[of_fit:] for each in rounds), strict=True))
    costs, idle = fit(fitted, encrypted, relayed)
    yield "Costs, in seconds, for the defaults of `Costs` in src/manychar/fleet/capacity.py:\n"
    yield table(("cost", "seconds"), [(n, f"{v:.2e}") for n, v in vars(costs).items()])
    yield "Beside them each second costs, of threads that wait and look at their clocks:\n"
    yield table(("server", "worker"), [[f"{each:.3f} s" for each in idle]])
    rows, missed = [], []
    for (hidden, workers), real in zip(checked, real_fleets, strict=True):
        parts = predicted(real, costs, idle)
        measured = (real.server, real.computing, real.transfers)
        ratio = sum(parts) / sum(measured)
        what = f"H {hidden}, `--workers` {workers}"
        cells = [_both(a, b) for a, b in zip(measured, parts, strict=True)]
        rows.append((what, *cells, _both(sum(measured), sum(parts)), f"{ratio:.2f}x"))
        missed += [what] if abs(ratio - 1) > WITHIN else []
    yield "On the cores, ms a step, measured · predicted by the simulation:\n"
    yield table(("fleet", "server", "workers", "sending and receiving", "in all", "ratio"), rows)
    if missed:
        raise SideError(f"not within {WITHIN:.0%}: {', '.join(missed)}")


def _median(runs: Sequence[_Run]) -> _Run:
    """Return the medians of one fleet's rounds."""
    names = ("seconds", "server", "computing", "transfers", "relay")
    found = {n: statistics.median(getattr(run, n) for run in runs) for n in names}
    return dataclasses.replace(runs[0], **found)


def _both(measured: float, found: float) -> str:
    return f"{number(1e3 * measured)} · {number(1e3 * found)}"


def predicted(real: _Run, costs: Costs, idle: Sequence[float]) -> tuple[float, float, float]:
    """Return what a step of the same fleet takes on the cores: server, workers, transfers."""
    fleet = Fleet(size=real.size, workers=real.workers, keys=False)
    use = VirtualFleet(fleet, costs).run().use
    of_server, of_worker = (each * real.seconds for each in idle)
    return use.server + of_server, use.worker + of_worker * real.workers, use.transfers


def fit(runs: Sequence[_Run], encrypted: _Run, relayed: _Run) -> tuple[Costs, tuple[float, float]]:
    """Return the costs that the runs come closest to, and the idle share of server and worker.

    What is left of a relay's time is its cost of a step: its units cost what the server's do.
    """
    step, step_byte, unit, unit_byte, server_idle = closest(
        runs,
        lambda r: r.server,
        lambda r: [
            *(1, r.size.parameters_bytes, r.workers, r.workers * r.size.parameters_bytes),
            r.seconds,
        ],
    )
    worker, *of_shard, worker_idle = closest(
        runs,
        lambda r: r.computing,
        lambda r: [r.workers, *_parts_of_shards(r.size), r.workers * r.seconds],
    )
    message, message_byte = closest(
        runs, lambda r: r.transfers, lambda r: [TRANSFERS * r.workers, _transferred(r)]
    )
    plain = message * TRANSFERS * encrypted.workers
    position, each_number, product, weight = of_shard
    costs = Costs(
        step=step,
        step_byte=step_byte,
        unit=unit,
        unit_byte=unit_byte,
        message=message,
        message_byte=message_byte,
        encrypted_byte=(encrypted.transfers - plain) / _transferred(encrypted),
        worker=worker,
        relay=0.0,
        position=position,
        number=each_number,
        product=product,
        weight=weight,
    )
    of_units = costs.of_units(relayed.size, relayed.workers, relayed.workers)
    of_relay = costs.of_relay(relayed.size) + of_units + server_idle * relayed.seconds
    costs = dataclasses.replace(costs, relay=max(0.0, relayed.relay - of_relay))
    return costs, (server_idle, worker_idle)


def _parts_of_shards(size: Dimensions) -> list[float]:
    positions, wide = size.shards * size.seq_length, size.hidden + size.vocabulary_size
    numbers = positions * size.streams * wide
    return [positions, numbers, numbers * size.hidden, positions * size.hidden**2]


def _transferred(run: _Run) -> int:
    """Return the bytes of a step's messages, at both ends of each."""
    found = predict(Fleet(size=run.size, workers=run.workers))
    return 2 * (found.bytes_in + found.bytes_out)


def closest(
    runs: Sequence[_Run], measured: Callable[[_Run], float], parts: Callable[[_Run], list[float]]
) -> list[float]:
    """Return the factors, none negative, with the least squares of relative errors."""
    rows: NDArray[np.float64] = np.array([parts(run) for run in runs], np.float64)
    rows /= np.array([[measured(run)] for run in runs])
    scale = rows.max(axis=0)
    rows /= scale
    factors = np.zeros(len(scale))
    missing = np.ones(len(runs))
    for _ in range(ROUNDS_OF_FIT):
        for i, column in enumerate(rows.T):
            better = max(0.0, factors[i] + column @ missing / (column @ column))
            missing -= column * (better - factors[i])
            factors[i] = better
    return [float(each) for each in factors / scale]


def _task(plan: Plan, hidden: int, shards: int, streams: int, _: int) -> Task:
    return plan.task(numerics="portable", hidden=hidden, shards=shards, streams=streams)


def _measure(plan: Plan, task: Task, workers: int, how: str) -> _Run:
    """Start a server that does not compute, and workers; return what a step takes."""
    with tempfile.TemporaryDirectory(dir=plan.scratch) as folder, contextlib.ExitStack() as stack:
        run_dir, locked, key = Path(folder) / "run", list[str](), list[str]()
        if how is ENCRYPTED:
            with manychar("keys", "create", f"{folder}/keys") as making:
                making.until_it_ends()
            locked, key = ["--keys", f"{folder}/keys"], ["--key", f"{folder}/keys/worker.key"]
        server = manychar(
            *("server", str(plan.text), "--bind", "tcp://127.0.0.1:*", "--child", *locked),
            *(*sizes(task), *operation(run_dir)),
            speaks=True,
        )
        started = [stack.enter_context(server)]
        endpoint = json.loads(server.listen())["endpoint"]
        names = ["server"]
        if how is BEHIND_RELAY:
            below = f"ipc://{folder}/relay"
            started.append(stack.enter_context(manychar("relay", endpoint, "--bind", below)))
            names, endpoint = ["server", "relay"], below
            until((Path(folder) / "relay").exists, "the relay")
        for i in range(workers):
            worker = manychar("worker", endpoint, "--name", f"worker-{i}", *key)
            started.append(stack.enter_context(worker))
        names += [f"worker {i}" for i in range(workers)]
        who = {name: each.process.pid for name, each in zip(names, started, strict=True)}
        grown, before, after = growth(
            run_dir, started, plan.seconds, after=SETTLED_AT, read=lambda: thread_times(who)
        )
    spent = {k: (after[k][0] - before[k][0]) / 1e9 / grown["step"] for k in after if k in before}
    transfers = sum(value for k, value in spent.items() if k.endswith("output"))
    in_all, server_seconds = sum(spent.values()), spent["server, main"]
    of_relay = spent.get("relay, main", 0.0)
    size = Dimensions(
        vocabulary_size=len(set(plan.text.read_text(encoding="utf-8"))),
        hidden=task.hidden,
        seq_length=task.seq_length,
        streams=task.streams,
        shards=task.shards,
        dtype="float32",
    )
    seconds = grown["seconds"] / grown["step"]
    computing = in_all - server_seconds - of_relay - transfers
    tell(f"{size}: {workers} workers: {seconds:.5f} s a step, {in_all:.5f} s on the cores")
    return _Run(size, workers, seconds, server_seconds, computing, transfers, of_relay)
