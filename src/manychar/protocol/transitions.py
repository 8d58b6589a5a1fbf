"""Transition tables: who handles an event in which state, and which states it may lead to."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

from manychar.protocol.effects import ProtocolError


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table. `next_states` are all that may follow; none are: it stays as it is."""

    handler: Callable[..., Any]
    next_states: tuple[enum.Enum, ...]

    def check(self, what: object, *, before: enum.Enum, after: enum.Enum) -> None:
        """Raise ProtocolError where an event led to a state that the row does not name."""
        if after not in (self.next_states or (before,)):
            way = f"from {before.value} to {after.value}"
            raise ProtocolError(f"{type(what).__name__} led {way}: not in the table")


Table = dict[tuple[enum.Enum, type[Any]], Row]


def rows(
    states: tuple[enum.Enum, ...],
    kinds: tuple[type[Any], ...],
    handler: Callable[..., Any],
    *next_states: enum.Enum,
) -> Table:
    """Return the rows of a table that have the same handler: each state with each kind."""
    return {(state, kind): Row(handler, next_states) for state in states for kind in kinds}
