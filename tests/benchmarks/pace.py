"""How many times a second something can be done."""

import time
from collections.abc import Callable


def per_second(act: Callable[[], object], seconds: float) -> float:
    """Do it again and again for that long, and return how often a second it was done.

    The clock is looked at once in a few acts, so that it costs short ones nothing.
    """
    start = time.perf_counter()
    act()
    once = time.perf_counter() - start
    at_once = max(1, int(min(0.02, seconds / 10) / max(once, 1e-7)))
    done, now = 0, time.perf_counter()
    start, end = now, now + seconds
    while now < end:
        for _ in range(at_once):
            act()
        done += at_once
        now = time.perf_counter()
    return done / (now - start)
