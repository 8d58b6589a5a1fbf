"""One process of PyTorch's DistributedDataParallel over gloo, in the fastest of the eager forms."""

import datetime
import importlib
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.sides.eager import Training, fastest, one_thread
from tests.benchmarks.task import Task

WARM_UP_STEPS = 20


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Train on together; the figure is this process's characters a second.

    The processes wait for one another at every step, so all take the same number of steps: as many
    as the warm-up said are done in the time.
    """
    torch = one_thread()
    distributed: Any = importlib.import_module("torch.distributed")
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{task.meeting}",
        rank=task.rank,
        world_size=task.size,
        timeout=datetime.timedelta(seconds=300),
    )
    chosen = [fastest(torch, task) if task.rank == 0 else None]
    distributed.broadcast_object_list(chosen, src=0)
    form = chosen[0]
    if form is None:
        raise RuntimeError("no form was chosen")

    def around(module: Any) -> Any:
        return torch.nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True
        )

    training = Training(torch, task, form, around)

    def train(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            training.step()
        return steps / (time.perf_counter() - start)

    train(WARM_UP_STEPS)
    rate = torch.tensor(train(WARM_UP_STEPS))
    distributed.all_reduce(rate)
    steps = max(1, round(task.seconds * rate.item() / task.size))

    def go(_: str) -> float:
        return task.streams * task.seq_length * train(steps)

    return str(form), go
