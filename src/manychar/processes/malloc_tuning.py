"""Has this process use freed memory again, and give it back only where it is told to.

A large array would otherwise be mapped anew at every step, and the kernel's filling of its pages
with zeros takes longer than the arithmetic. These are settings of glibc; another C library has its
own ways, and is left to them.
"""

import contextlib
import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
_TRIM_FROM_BYTES = 2**30
_MMAP_FROM_BYTES = 2**25  # the most that mallopt takes on every 64-bit glibc
_PAGE = os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> None:
    """Have arrays of up to 32 MiB come from the heap, and the heap keep up to a GiB.

    All threads have one heap: of another one's, malloc_trim(3) would give little back.
    """
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_FROM_BYTES)


def give_freed_memory_back() -> None:
    """Have the system take what is free. Other threads wait meanwhile: some 0.1 s for a GiB."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


class Meter:
    """Says how much memory is this process's own; it opens its file once, for files may run out."""

    def __init__(self) -> None:
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open("/proc/self/statm", os.O_RDONLY)

    def close(self) -> None:
        """Measure no more."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def private_bytes(self) -> int:
        """Return how much is resident and of no file; 0 where the system does not say."""
        if self._file < 0:
            return 0
        _, resident, shared, *_ = map(int, os.pread(self._file, 256, 0).split())
        return (resident - shared) * _PAGE
