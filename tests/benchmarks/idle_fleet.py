"""The exchange alone: a real server, and real workers that compute nothing."""

import contextlib
import dataclasses
import itertools
import json
import subprocess
import tempfile
import time
from pathlib import Path

from tests.benchmarks.asking import SideError
from tests.benchmarks.plan import Plan
from tests.benchmarks.program import HERE, Program
from tests.benchmarks.running import PATIENCE, Process, growth, manychar, operation, sizes
from tests.benchmarks.task import Task

FEW = 8  # they all join before the first metrics


@dataclasses.dataclass(frozen=True)
class IdleFleet:
    """A run's sizes, and whose processes; they are started anew each round."""

    plan: Plan
    task: Task
    workers: int = 2
    program: Program = HERE
    relays: int = 0

    def started(self, stack: contextlib.ExitStack) -> tuple[Path, list[Process]]:
        """Return a run directory, and its server and workers; they end with the stack."""
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self.plan.scratch))
        run_dir = Path(folder) / "run"
        arguments = [
            *("server", str(self.plan.text), "--bind", "tcp://127.0.0.1:*", "--child"),
            *sizes(self.task),
            *operation(run_dir),
        ]
        server = manychar(*arguments, program=self.program, speaks=True)
        stack.enter_context(server)
        endpoint = json.loads(server.listen())["endpoint"]
        idle = self.program.idle_worker(self.task.numerics)
        above = [f"ipc://{folder}/relay-{i}" for i in range(self.relays)]
        relays = [
            stack.enter_context(manychar("relay", endpoint, "--bind", each, "--name", f"relay-{i}"))
            for i, each in enumerate(above)
        ]
        workers = [
            stack.enter_context(Process([*idle, to, f"idle-{i}"], program=self.program))
            for i, to in zip(range(self.workers), itertools.cycle(above or [endpoint]))
        ]
        if self.relays or self.workers > FEW:
            _until_all_compute(endpoint, self.relays + self.workers)
        return run_dir, [server, *relays, *workers]

    def measure(self, turn: int) -> float:
        """Return steps a second, the start left out; `turn` does not matter."""
        with contextlib.ExitStack() as stack:
            run_dir, processes = self.started(stack)
            grown, *_ = growth(run_dir, processes, self.plan.seconds)
        return grown["step"] / grown["seconds"]


def _until_all_compute(endpoint: str, count: int) -> None:
    """Wait until each worker and relay holds shards."""
    deadline = time.monotonic() + PATIENCE
    command = [HERE.python, "-m", "manychar", "status", endpoint, "--json"]
    while time.monotonic() < deadline:
        done = subprocess.run(command, cwd=HERE.root, capture_output=True, text=True, check=False)
        if not done.returncode:
            workers = json.loads(done.stdout)["workers"]
            if sum(worker["shards"] > 0 for worker in workers) == count:
                return
        time.sleep(0.5)
    raise SideError(f"{count} workers and relays do not all hold shards after {PATIENCE:.0f} s")


class ServerThread(IdleFleet):
    """The same, but the figure is the time of the server's main thread on a core."""

    def measure(self, turn: int) -> float:
        """Return µs a step, as the system's scheduler counts them."""
        with contextlib.ExitStack() as stack:
            run_dir, processes = self.started(stack)
            pid = processes[0].process.pid
            schedstat = Path(f"/proc/{pid}/task/{pid}/schedstat")
            grown, before, after = growth(
                run_dir,
                processes,
                self.plan.seconds,
                read=lambda: int(schedstat.read_text(encoding="ascii").split()[0]),
            )
        return float(after - before) / grown["step"] / 1e3
