"""Pins the arithmetic of this process, before numpy is imported.

BLAS and numpy choose their kernels by CPU and by environment variables when they are loaded. One
thread always; `portable` also holds x86-64 to one instruction set that all current servers have, so
that different machines compute the same bits. `native` leaves the choice to CPU and environment.
"""

import os
import platform
import sys

from manychar.processes.malloc_tuning import keep_freed_memory

_ONE_THREAD = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_PORTABLE = {
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
_pinned: list[str] = []


def pin(numerics: str) -> None:
    """Pin this process and its children to `portable` or `native` numerics.

    Raises RuntimeError where numpy has been imported with other settings.
    """
    if numerics in _pinned:
        return
    if "numpy" in sys.modules:
        raise RuntimeError(f"numerics {numerics} asked for after numpy was imported")
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    if numerics == "portable" and platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.update(_PORTABLE)
    keep_freed_memory()
    _pinned[:] = [numerics]


def can_pin(numerics: str) -> bool:
    """Whether `pin` would still be in time."""
    return numerics in _pinned or "numpy" not in sys.modules
