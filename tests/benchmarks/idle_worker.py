"""A real worker that computes nothing: `python -m tests.benchmarks.idle_worker ENDPOINT NAME`.

Its loop, its messages and its proof are the program's own; each unit's result is preset, so that a
repeat is the same bytes. What is left is the exchange.
"""

import dataclasses
import sys
from collections.abc import Callable
from unittest.mock import patch

from manychar.fleet.worker_process import work
from manychar.network.client_identity import hello
from manychar.processes.numerics_pinning import pin
from manychar.protocol.messages import Role

SMALL = 1e-3


def main(endpoint: str, name: str) -> int:
    """Work until the run ends."""
    pin("native")
    import numpy as np  # noqa: PLC0415 - now that it is pinned

    from manychar.fleet import engine  # noqa: PLC0415
    from manychar.protocol.aggregation import as_frame  # noqa: PLC0415
    from manychar.protocol.effects import Compute  # noqa: PLC0415
    from manychar.protocol.events import Computed  # noqa: PLC0415
    from manychar.protocol.messages import Dimensions  # noqa: PLC0415

    class Idle(engine.Engine):
        def __init__(self, dimensions: Dimensions) -> None:
            super().__init__(dimensions)
            gradient = np.full(dimensions.parameters_bytes // dimensions.value_bytes, SMALL)
            hidden = np.full(dimensions.hidden_bytes // dimensions.value_bytes, SMALL)
            self._result = Computed(
                shard=0,
                step=0,
                loss=1.0,
                gradient=as_frame(gradient.astype(dimensions.dtype)),
                hidden=as_frame(hidden.astype(dimensions.dtype)),
                slowest=SMALL,
                seconds=SMALL,
            )

        def compute(self, unit: Compute, heartbeat: Callable[[], float] | None = None) -> Computed:
            return dataclasses.replace(self._result, shard=unit.shard, step=unit.step)

    with patch.object(engine, "Engine", Idle):
        me = hello(Role.WORKER, name)
        return work(endpoint, me, connect_timeout=60.0).code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
