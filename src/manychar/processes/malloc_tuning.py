"""Keeps freed memory in the process, so that large arrays reuse it.

A large array would otherwise be mapped anew at every step, and the kernel's filling of its pages
with zeros takes longer than the arithmetic. These are settings of glibc; another C library has its
own ways, and is left to them.
"""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
_TRIM_FROM_BYTES = 2**30
_MMAP_FROM_BYTES = 2**25  # the most that mallopt takes on every 64-bit glibc


def keep_freed_memory() -> None:
    """Have arrays of up to 32 MiB come from the heap, and the heap keep up to a GiB.

    All threads have one heap, so that what one of them frees another can use.
    """
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_FROM_BYTES)
