"""Whether a live run is well, in one line: it advances, or says for whom it waits."""

import contextlib
import dataclasses
import time

from manychar.network.keys import ClientKey
from manychar.observability.observer_client import Standing, watch
from manychar.processes.errors import RUN_FAILED, UserError

NAMES_SHOWN = 5
NOT_WRITTEN = "_not_written"


@dataclasses.dataclass(frozen=True)
class Health:
    """Whether a run is `well`, and one line that says why, or why not."""

    line: str
    well: bool = True


def examine(endpoint: str, key: ClientKey | None, *, patience: float) -> Health:
    """Watch a live run until it advances or says for whom it waits, `patience` seconds at most.

    Raises UserError where no server answers within as long, it refuses, or the run has ended.
    """
    first: Standing | None = None
    give_up_at = 0.0
    with contextlib.closing(watch(endpoint, key, patience=patience)) as standings:
        for standing in standings:
            if first is None:
                first, give_up_at = standing, time.monotonic() + patience
            in_vain = time.monotonic() >= give_up_at
            if (health := judge(first, standing, in_vain=in_vain)) is not None:
                return health
    raise UserError(f"{endpoint}: the run has ended", code=RUN_FAILED)


def judge(first: Standing, now: Standing, *, in_vain: bool) -> Health | None:
    """Return how well a run is that stood so at first and stands so now; None: too early to say.

    `in_vain` is that there is no more time.
    """
    report = now.report
    at = f"step {report.step:,}" + (f" of {report.steps:,}" if report.steps else "")
    holding = sum(worker.leases > 0 for worker in now.workers)
    if (report.term, report.step) > (first.report.term, first.report.step):
        lost = [f"{what}: {n}" for what, n in report.counts.items() if what.endswith(NOT_WRITTEN)]
        advances = f"it advances, with {holding} worker{'s' if holding > 1 else ''}"
        return Health(f"{at}: {'; '.join([advances, *lost])}")
    if now.waiting:
        return Health(f"{at}: it waits for {now.waiting}")
    if not in_vain:
        return None
    late = {worker.name: worker.late for worker in now.workers if worker.late}
    if late:
        more = f" and {len(late) - NAMES_SHOWN} more" if len(late) > NAMES_SHOWN else ""
        names = ", ".join(list(late)[:NAMES_SHOWN])
        return Health(f"{at}: it has waited {max(late.values()):.0f} s for {names}{more}")
    return Health(f"{at}: it does not advance, and does not say for whom it waits", well=False)
