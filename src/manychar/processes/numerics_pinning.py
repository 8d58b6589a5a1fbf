"""Pins the arithmetic of this process, before numpy is imported.

BLAS and numpy choose their kernels by CPU and by environment variables when they are loaded. One
thread always; `portable` also holds x86-64 to one instruction set that all current servers have, so
that different machines compute the same bits. `native` leaves the choice to CPU and environment.
"""

import contextlib
import ctypes
import os
import platform
import resource
import sys

from manychar.processes.errors import RUN_FAILED, UserError

_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_AVX2 = {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
_TRIM_FROM_BYTES = 2**30
_MMAP_FROM_BYTES = 2**25  # the most that mallopt takes on every 64-bit glibc
_LEAST_BYTES = 384 * 2**20  # with less, loading numpy or starting a thread may fail
_pinned: list[str] = []


def pin(numerics: str) -> None:
    """Pin this process and its children to `portable` or `native` numerics.

    Raises RuntimeError where numpy has been imported with other settings, and UserError where it
    and its BLAS, which would end this process, cannot be loaded.
    """
    if numerics in _pinned:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 < limit < _LEAST_BYTES:  # -1: none
        text = f"the memory limit is too small: {limit // 1024:,} kB of address space (ulimit -v);"
        raise UserError(f"{text} give at least {_LEAST_BYTES // 1024:,} kB", code=RUN_FAILED)
    if "numpy" in sys.modules:
        raise RuntimeError(f"numerics {numerics} asked for after numpy was imported")
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    if numerics == "portable" and platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.update(_AVX2)
    _keep_freed_memory()
    _pinned[:] = [numerics]


def _keep_freed_memory() -> None:
    """Take arrays of up to 32 MiB from one heap of all threads, which keeps up to a GiB.

    glibc would otherwise map a large array at every step, and the kernel's filling of its pages
    with zeros takes longer than the arithmetic.
    """
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_FROM_BYTES)
