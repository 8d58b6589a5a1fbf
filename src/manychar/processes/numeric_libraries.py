"""The libraries and kernels that compute here, as named beside a numerics fingerprint."""

import ctypes
import platform
from pathlib import Path

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


def kernels() -> dict[str, str]:
    """Return which kernels numpy and its OpenBLAS have chosen for this CPU."""
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})
    found = {"numpy kernels": " ".join(simd.get("found", [])) or "baseline"}
    for path in (Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas*"):
        core = getattr(ctypes.CDLL(str(path)), "scipy_openblas_get_corename64_", None)
        if core is not None:
            core.restype = ctypes.c_char_p
            return {**found, "blas kernels": core().decode()}
    return {**found, "blas kernels": "unknown"}
