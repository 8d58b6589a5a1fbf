"""When a loss was low enough, between two that were looked at."""


def crossing(before: tuple[float, float], after: tuple[float, float], target: float) -> float:
    """Return when a loss comes down to the target, between two of (time, loss)."""
    (t0, high), (t1, low) = before, after
    return t1 if high <= low else t0 + (t1 - t0) * (high - target) / (high - low)
