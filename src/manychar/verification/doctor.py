"""Whether this machine can join a fleet: what decides its bits, its speed and its limits."""

import json
import os
import platform
import resource
import shutil
from pathlib import Path
from typing import Any

import zmq

from manychar import __version__
from manychar.fleet.launch_options import usable_cores
from manychar.processes.errors import UserError
from manychar.processes.subcommand import Command

DTYPES = "float32", "float64"


def examine() -> dict[str, Any]:
    """Return the facts by topic; those of each numerics setting come from a new process."""
    return {
        "manychar": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "curve": bool(zmq.has("curve")),
        "numerics": {name: _numerics(name) for name in ("portable", "native")},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _numerics(setting: str) -> dict[str, Any]:
    """Return the libraries, kernels and fingerprint of a process with this setting."""
    try:
        found: dict[str, Any] = json.loads("".join(Command("fingerprints", setting).output()))
    except UserError as error:
        return {"error": str(error)}
    return found


def compute_fingerprints() -> dict[str, Any]:
    """Return the libraries that compute in this process, and the fingerprints of a fixed probe."""
    from manychar.numerics.kernel import Kernel  # noqa: PLC0415 - numpy, pinned
    from manychar.numerics.numerics_fingerprint import fingerprint  # noqa: PLC0415
    from manychar.processes.numeric_libraries import kernels, libraries  # noqa: PLC0415

    names = libraries()
    found = {}
    for dtype in DTYPES:
        kernel = Kernel(65, 100, seq_length=25, streams=16, dtype=dtype)
        found[dtype] = fingerprint(kernel, names)
    return {"libraries": names, "kernels": kernels(), "fingerprints": found}
