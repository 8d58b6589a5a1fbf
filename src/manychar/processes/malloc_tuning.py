"""Keeps freed memory in the process, so that large arrays reuse it (glibc only).

A large array would otherwise be mapped anew at every step, and the kernel's filling of its pages
with zeros takes longer than the arithmetic.
"""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
_TRIM_FROM_BYTES = 2**30
_MMAP_FROM_BYTES = 2**25  # the most that mallopt takes on every 64-bit glibc


def keep_freed_memory() -> None:
    """Take arrays of up to 32 MiB from one heap of all threads, which keeps up to a GiB."""
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_FROM_BYTES)
