"""A real worker that computes nothing: `python -m tests.benchmarks.idle_worker ENDPOINT NAME`.

Its loop, its messages, its sums and its fingerprint are the program's own; only the result of a
shard is preset, so that a repeat is the same bytes, and its time, so that no range moves. What is
left is the exchange.
"""

import sys
from typing import Any
from unittest.mock import patch

from manychar.fleet import worker_process
from manychar.network.client_identity import make_hello
from manychar.processes.numerics_pinning import pin
from manychar.protocol.events import Computed, FingerprintComputed
from manychar.protocol.messages import Role

SMALL = 1e-3


def pin_and_idle(numerics: str) -> None:
    """Pin, then replace the engine: its import is that of numpy."""
    pin(numerics)
    import numpy as np  # noqa: PLC0415

    from manychar.fleet import engine  # noqa: PLC0415
    from manychar.numerics.kernel import Kernel  # noqa: PLC0415
    from manychar.numerics.model import Parameters, count_parameters  # noqa: PLC0415

    class Idle(engine.Engine):
        def compute_fingerprint(self) -> FingerprintComputed:
            found, kernel = super().compute_fingerprint(), self._kernel
            sizes = kernel.vocabulary_size, kernel.hidden_size
            flat = np.full(count_parameters(*sizes), SMALL, kernel.dtype)
            hidden = np.full((kernel.streams, kernel.hidden_size), SMALL, kernel.dtype)
            for array in (flat, hidden):
                array.setflags(write=False)
            result = (1.0, Parameters(flat, *sizes), hidden)
            patch.object(engine, "compute_shard", lambda *_: result).start()
            patch.object(Kernel, "load", lambda *_: None).start()
            patch.object(engine, "Computed", _computed).start()
            return found

    patch.object(engine, "Engine", Idle).start()


def _computed(*values: Any, **others: Any) -> Computed:
    return Computed(*values, **others | {"seconds": SMALL})


def main(endpoint: str, name: str) -> int:
    """Work until the run ends."""
    with patch.object(worker_process, "pin", pin_and_idle):
        return worker_process.work(
            endpoint, make_hello(Role.WORKER, name), connect_timeout=60.0
        ).code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
