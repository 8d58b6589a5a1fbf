"""What one hidden unit does over a text: coloured characters, and in words what it follows."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from manychar.observability.dashboard.run_history import Moment

FOLLOWS_FROM = 0.4
"""The least correlation, of either sign, of which it is said that a unit follows something."""

OCCURS_FROM = 8
"""At how many characters a thing has to be otherwise than at most, to be spoken of."""

QUOTES = '"“”„«»'


@dataclasses.dataclass(frozen=True)
class Following:
    """The unit that follows something in the text the closest, and its correlation with it."""

    what: str
    unit: int
    correlation: float


def followings(moment: Moment) -> list[Following]:
    """Return, for each thing that a text shows, the unit that follows it, the closest first.

    Constant units, and things that hardly occur, are left out.
    """
    states = moment.states - moment.states.mean(axis=0)
    lengths = np.sqrt((states**2).sum(axis=0))
    found = []
    for what, values in _features(moment.text):
        _, counts = np.unique(values, return_counts=True)
        if len(values) - counts.max() < OCCURS_FROM:
            continue
        centred = values - values.mean()
        length = np.sqrt((centred**2).sum())
        products = centred @ states
        correlations = np.divide(
            products, lengths * length, out=np.zeros_like(products), where=lengths > 0
        )
        unit = int(np.abs(correlations).argmax())
        if abs(correlations[unit]) >= FOLLOWS_FROM:
            found.append(Following(what, unit, float(correlations[unit])))
    return sorted(found, key=lambda one: -abs(one.correlation))


def extremes(moment: Moment, unit: int) -> tuple[int, int]:
    """Return the positions where a unit is lowest and highest."""
    values = moment.states[:, unit]
    return int(values.argmin()), int(values.argmax())


def around(text: str, position: int, reach: int = 8) -> str:
    """Return the characters up to a position, on one line."""
    return visible(text[max(0, position - reach + 1) : position + 1])


def visible(text: str) -> str:
    """Return a text with its ends of lines, tabs and control characters made visible."""
    shown = {"\n": "↵", "\t": "⇥"}
    return "".join(
        shown.get(c, c if c.isprintable() else "\N{REPLACEMENT CHARACTER}") for c in text
    )


def _features(text: str) -> Iterator[tuple[str, NDArray[np.float64]]]:
    yield "the position in the line", _count_since(text, lambda c: c == "\n")
    yield "the position in the word", _count_since(text, lambda c: not c.isalnum())
    yield "being inside quotes", _inside_quotes(text)
    tests: dict[str, Callable[[str], bool]] = {
        "blanks": lambda c: c == " ",
        "ends of lines": lambda c: c == "\n",
        "vowels": lambda c: c.lower() in "aeiouyäöüåæøéèáíóú",
        "letters": str.isalpha,
        "capitals": str.isupper,
        "digits": str.isdigit,
        "punctuation": lambda c: not c.isalnum() and not c.isspace(),
    }
    for what, test in tests.items():
        yield what, np.array([float(test(c)) for c in text])


def _count_since(text: str, ends: Callable[[str], bool]) -> NDArray[np.float64]:
    counts, count = np.zeros(len(text)), 0
    for position, character in enumerate(text):
        count = 0 if ends(character) else count + 1
        counts[position] = count
    return counts


def _inside_quotes(text: str) -> NDArray[np.float64]:
    inside, states = False, np.zeros(len(text))
    for position, character in enumerate(text):
        if character in QUOTES:
            inside = not inside
        states[position] = inside
    return states
