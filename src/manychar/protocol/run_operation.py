"""How a run is carried out: config.json's `operation`. No bit of the weights depends on it.

Here are the defaults of the number of steps, checkpoints, samples, workers and the lease timeout.
`stop_when_no_better` decides how many steps are done, not what a step computes.
"""

import dataclasses
import functools

from manychar.numerics.option import Formula, check, option

MOST_WORKERS = 256  # processes of one command: a mistyped number would fill the machine

_option = functools.partial(option, roles=("train", "server"))
_count = functools.partial(_option, least=0, most=10**15)


def choose_steps(hidden: int) -> int:
    """Return 12,500, or 25,000 from 256 hidden units on, where a step reads half as much."""
    return 12_500 if hidden < 256 else 25_000


def as_many_as_useful(shards: int, cores: int) -> int:
    """Return how many workers both find a shard and a core."""
    return min(shards, cores, MOST_WORKERS)


def pays_to_compute(workers: int, cores: int) -> bool:
    """Whether no core is left for a server that only waits."""
    return workers == 1 or workers >= cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """The options of a run's operation; intervals are in steps."""

    steps: int = _count(
        Formula("12_500; hidden >= 256: 25_000", choose_steps),
        "Total number of steps; 0: until Ctrl-C.",
    )
    checkpoint_every: int = _count(1000, "Steps between checkpoints; 0: only the first and last.")
    keep_checkpoints: int = _count(20, "Newest checkpoints to keep, beside 0 and the best; 0: all.")
    checkpoint_minutes: float = _option(
        2.0,
        "Minutes between checkpoints for recovery alone, of which the newest is kept; 0: none.",
        least=0,
        most=10**6,
    )
    sample_every: int = _count(1000, "Steps between samples; 0: only at the end.")
    sample_length: int = _count(200, "Characters of a sample; 0: no samples.")
    workers: int = option(
        Formula(f"min(shards, cores, {MOST_WORKERS})", as_many_as_useful),
        "Processes that compute; with --compute, the server's is one of them.",
        roles=("train",),
        least=1,
        most=MOST_WORKERS,
    )
    compute: bool = option(
        Formula("where workers >= cores, or workers = 1", pays_to_compute),
        "The server's process is one of the workers.",
        roles=("train",),
        names=("--compute/--no-compute",),
    )
    lease_timeout: float = _option(
        2.0,
        "Seconds without a heartbeat or progress after which a worker's shards are reassigned.",
        least=0.1,
        most=86_400,
    )
    stop_when_no_better: int = _count(
        0, "Stop after N checkpoints without a lower validation loss; 0: never."
    )

    def __post_init__(self) -> None:
        check(self)
