"""The server with 1 to 1,000 workers in one process, whose results are preset, a shard each."""

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.plan import MissingError, Plan
from tests.benchmarks.rounds import tell
from tests.benchmarks.running import Process, manychar, operation, sizes
from tests.benchmarks.tables import number, table
from tests.commands import until

FLEETS = ((1, 0), (10, 0), (100, 0), (1000, 0), (1000, 16))  # workers, relays before them
HEAD = (
    "workers",
    "seconds until all have a lease",
    "steps a second",
    "server's main thread, µs a step and worker",
    "its other threads",
    "its memory, MiB",
    "seconds until a tenth is replaced",
    "units of a worker meanwhile",
)
MICROSECOND, MEBIBYTE = 1e3, 1024  # in nanoseconds, in kB


def run(plan: Plan) -> Iterator[str]:
    """Yield the table."""
    if not Path("/proc/self/schedstat").exists():
        raise MissingError("this system has no /proc/PID/schedstat")
    yield "One server, H 8, B 1, a shard and a preset result for each worker:\n"
    yield table(HEAD, [_row(plan, *fleet) for fleet in FLEETS])


def _row(plan: Plan, count: int, relays: int) -> tuple[str, ...]:
    task = plan.task(numerics="portable", hidden=8, shards=count)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=plan.scratch))
        server = manychar(
            *("server", str(plan.text), "--bind", "tcp://127.0.0.1:*", "--child"),
            *(*sizes(task), *operation(Path(folder) / "run")),
            speaks=True,
        )
        stack.enter_context(server)
        endpoint = json.loads(server.listen())["endpoint"]
        sockets = [Path(folder) / f"relay-{i}" for i in range(relays)]
        above = [f"ipc://{each}" for each in sockets]
        for each in above:
            stack.enter_context(manychar("relay", endpoint, "--bind", each))
        until(lambda: all(each.exists() for each in sockets), "the relays")
        arguments = ["-m", "tests.many_workers", str(count), *(above or [endpoint])]
        workers = stack.enter_context(Process(arguments, speaks=True))
        leased = json.loads(workers.listen())["leased"]
        _ask(workers, "units")
        began, before = time.monotonic(), _times(server.process.pid)
        time.sleep(plan.seconds)
        units = _ask(workers, "units")
        seconds = time.monotonic() - began
        steps = sum(units.values()) / count
        main, others = (
            (b - a) / steps / count / MICROSECOND
            for a, b in zip(before, _times(server.process.pid), strict=True)
        )
        replaced = _ask(workers, f"replace {max(1, count // 10)}")["leased"]
        memory = _memory(server.process.pid) / MEBIBYTE
    tell(f"{count} workers: {steps / seconds:.3g} steps a second")
    figures = map(number, (leased, steps / seconds, main, others, memory, replaced))
    fewest, most = min(units.values()), max(units.values())
    behind = f" behind {relays} relays" if relays else ""
    return f"{count:,}{behind}", *figures, f"{fewest:,} … {most:,}"


def _ask(workers: Process, command: str) -> dict[str, Any]:
    assert workers.process.stdin is not None
    workers.process.stdin.write(f"{command}\n".encode())
    workers.process.stdin.flush()
    found: dict[str, Any] = json.loads(workers.listen())
    return found


def _times(process: int) -> tuple[int, int]:
    """Return the ns on a core of the main thread, and of the others."""
    times = {
        int(task.name): int((task / "schedstat").read_text(encoding="ascii").split()[0])
        for task in Path(f"/proc/{process}/task").iterdir()
    }
    return times.pop(process), sum(times.values())


def _memory(process: int) -> int:
    """Return a process's own memory in kB."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0])
