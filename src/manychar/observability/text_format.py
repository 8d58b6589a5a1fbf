"""How a run's texts and times are written for people."""

import math


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Return a text without control characters: a terminal obeys them, a page hides them."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def step_of(step: int, steps: int) -> str:
    """Return a step, and after a slash how many the run has, where it has an end."""
    return f"{step:,}/{steps:,}" if steps else f"{step:,}"


def duration(seconds: float) -> str:
    """Return seconds in words of two parts at most; '–' for what is not finite."""
    if not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
