"""What a hidden unit does over a text: in words, and which unit follows which feature of it."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from manychar.observability.dashboard.view import Sample
from manychar.processes.text_format import printable

LEAST_CORRELATION = 0.4
OCCURS_FROM = 8
"""A feature has to differ at that many characters of a text."""

QUOTES = '"“”„«»'


def followings(sample: Sample) -> dict[int, str]:
    """Return the units that follow a feature of the text, the closest first, each with words."""
    states = sample.states - sample.states.mean(axis=0)
    lengths = np.sqrt((states**2).sum(axis=0))
    found = []
    for feature, values in _features(sample.text).items():
        if len(values) - np.unique(values, return_counts=True)[1].max() < OCCURS_FROM:
            continue
        centred = values - values.mean()
        scale = lengths * np.sqrt((centred**2).sum())
        products = centred @ states
        correlations = np.divide(products, scale, out=np.zeros_like(products), where=lengths > 0)
        unit = int(np.abs(correlations).argmax())
        if abs(correlations[unit]) >= LEAST_CORRELATION:
            found.append((float(correlations[unit]), unit, feature))
    names: dict[int, str] = {}
    for value, unit, feature in sorted(found, key=lambda each: -abs(each[0])):
        names.setdefault(unit, f"{unit}: follows {feature} ({signed(value)})")
    return names


def in_words(sample: Sample, unit: int) -> str:
    """Return in a sentence what a hidden unit does over a text."""
    values = sample.states[:, unit]
    low, high = int(values.argmin()), int(values.argmax())
    return (
        f"Unit {unit} over {len(sample.text)} characters of step {sample.step:,}: mean"
        f" {signed(values.mean())}, above zero after {float((values >= 0).mean()):.0%} of them;"
        f" highest ({signed(values[high])}) after “{_up_to(sample.text, high)}”, lowest"
        f" ({signed(values[low])}) after “{_up_to(sample.text, low)}”."
    )


def signed(value: float) -> str:
    """Return an activation with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def _up_to(text: str, position: int, reach: int = 8) -> str:
    before = text[max(0, position - reach + 1) : position + 1]
    return printable(before).replace("\n", "↵").replace("\t", "⇥")


def _features(text: str) -> dict[str, NDArray[np.float64]]:
    tests: dict[str, Callable[[str], bool]] = {
        "blanks": str.isspace,
        "ends of lines": lambda c: c == "\n",
        "capitals": str.isupper,
        "digits": str.isdigit,
        "punctuation": lambda c: not c.isalnum() and not c.isspace(),
        "quotes": lambda c: c in QUOTES,
    }
    found = {name: np.array([float(test(c)) for c in text]) for name, test in tests.items()}
    positions = np.arange(len(text))
    starts = np.maximum.accumulate(np.where(found["ends of lines"] > 0, positions, -1))
    found["the position in the line"] = (positions - starts).astype(np.float64)
    found["being inside quotes"] = found.pop("quotes").cumsum() % 2
    return found
