"""Lets threads that pass messages run before one that computes.

Linux (from 6.12 on) lets a thread that wakes run before one whose time slices are longer than its
own. A computing thread asks for the longest: it gets no less time, but no message waits for it.
"""

import ctypes
import os
import platform
import struct
import sys

LONGEST_SLICE_NS = 100_000_000
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # system call numbers
_KEEP_POLICY = 0x08  # SCHED_FLAG_KEEP_POLICY
_ATTRIBUTES = struct.Struct("<IIQiIQQQ")  # struct sched_attr of sched_setattr(2)


def make_way() -> None:
    """Ask for the longest slices for this thread, where the system has them."""
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)  # as it was: `nice` and `chrt` are the user's
    values = (_ATTRIBUTES.size, 0, _KEEP_POLICY, nice, 0, LONGEST_SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, _ATTRIBUTES.pack(*values), 0)
