"""Has this process use freed memory again, instead of giving it back at every step.

A large array would otherwise be mapped anew each time, and the kernel's filling of its pages with
zeros takes longer than the arithmetic. These are settings of glibc; another C library has its own
ways, and is left to them.
"""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_TRIM_FROM_BYTES = 2**30
_MMAP_FROM_BYTES = 2**25  # the most that mallopt takes on every 64-bit glibc


def keep_freed_memory() -> None:
    """Have arrays of up to 32 MiB come from the heap, and the heap keep up to a GiB."""
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_FROM_BYTES)
