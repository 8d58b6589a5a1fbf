"""Whether this machine can join a fleet: what decides its bits, its speed and its limits."""

import os
import platform
import resource
import shutil
from pathlib import Path
from typing import Any

import zmq

from manychar import __version__
from manychar.numerics.kernel import Kernel
from manychar.numerics.numerics_fingerprint import fingerprint
from manychar.processes.numeric_libraries import kernels, libraries
from manychar.processes.usable_cores import usable_cores

DTYPES = "float32", "float64"


def examine() -> dict[str, Any]:
    """Return the facts by topic; fingerprints are those of a fixed probe in this process."""
    names = libraries()
    probes = {each: Kernel(65, 100, seq_length=25, streams=16, dtype=each) for each in DTYPES}
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
        "libraries": names,
        "kernels": kernels(),
        "fingerprints": {dtype: fingerprint(kernel, names) for dtype, kernel in probes.items()},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
