"""What computes here: the names that stand beside a numerics fingerprint."""

import platform

import numpy as np


def libraries() -> dict[str, str]:
    """Return the versions and builds of numpy, its BLAS and the C library, and the architecture."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name, release = platform.libc_ver()
    return {
        "numpy": np.__version__,
        "blas": f"{blas['name']}-{blas['version']}",
        "libm": f"{name or platform.system()}-{release or platform.release()}",
        "architecture": platform.machine(),
    }
