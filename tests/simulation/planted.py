"""The list of planted bugs, and how a module adds to it.

A mutant is a function that plants one bug; its name says what is wrong then. Noted with it are the
rule of the protocol that is left out, by its number in the protocol's README (a word stands for a
promise beside the rules; rules that hide one another are left out together, too), the kind of
schedule in which it is looked for, the invariants that may find it, and a seed with which one of
them does: the first to be tried.

Left to other tests: the lock, the term file and checkpoint 0 of rule 12 and the mailbox of rule 15
belong to the shells; a newer server's term (11), cycles of relays (18) and how long a relay may be
silent are stories in tests/protocol.
"""

import dataclasses
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from manychar.protocol.events import Row

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One planted bug, and where and how it is found."""

    rule: str
    name: str
    kind: str
    invariants: tuple[str, ...]
    seed: int
    plant: Plant

    def __str__(self) -> str:
        return f"{self.rule}: {self.name}"


_MUTANTS: list[Mutant] = []


def mutant(rule: str, kind: str, *invariants: str, seed: int = 0) -> Callable[[Plant], Plant]:
    """Note a function that plants a bug."""

    def note(plant: Plant) -> Plant:
        name = plant.__name__.strip("_").replace("_", " ")
        _MUTANTS.append(Mutant(rule, name, kind, invariants, seed, plant))
        return plant

    return note


def planted_in(*modules: ModuleType) -> list[Mutant]:
    """Return the mutants of these modules."""
    names = {module.__name__ for module in modules}
    return [each for each in _MUTANTS if each.plant.__module__ in names]


def plant_handler(
    patch: pytest.MonkeyPatch, machine: type[Any], name: str, handler: Callable[..., Any]
) -> None:
    """Replace a method of a machine, and in its tables of transitions, too."""
    right = getattr(machine, name)
    patch.setattr(machine, name, handler)
    for table in (*vars(sys.modules[machine.__module__]).values(), *vars(machine).values()):
        for key, row in list(table.items()) if isinstance(table, dict) else ():
            if isinstance(row, Row) and row.handler is right:
                patch.setitem(table, key, dataclasses.replace(row, handler=handler))
