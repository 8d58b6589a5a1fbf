"""Pins the arithmetic of this process, and how it keeps memory, before numpy is imported.

BLAS and numpy choose their kernels by CPU and by environment variables that they read once, when
they are loaded. One thread always; `portable` also holds x86-64 to one instruction set that all
current servers have, so that different machines come to the same bits. `native` leaves the choice
of kernels to the machine and to the user's environment.
"""

import contextlib
import ctypes
import os
import platform
import sys

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
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 2**30
_pinned: list[str] = []


def pin(numerics: str) -> None:
    """Pin this process and its children to `portable` or `native` numerics.

    Raises RuntimeError where numpy is here already with other settings: it is too late then.
    """
    if numerics in _pinned:
        return
    if "numpy" in sys.modules:
        raise RuntimeError(f"numerics {numerics} asked for after numpy was imported")
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    if numerics == "portable" and platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.update(_PORTABLE)
    _keep_freed_memory()
    _pinned[:] = [numerics]


def can_pin(numerics: str) -> bool:
    """Whether `pin` would still be in time."""
    return numerics in _pinned or "numpy" not in sys.modules


def _keep_freed_memory() -> None:
    """Have glibc use freed arrays again instead of giving them back to the kernel.

    A large array would otherwise be mapped anew at every step, which takes longer than to fill it.
    """
    with contextlib.suppress(AttributeError):  # another C library: it has its own ways
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, _KEPT_BYTES)
