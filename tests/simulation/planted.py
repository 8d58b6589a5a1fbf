"""The list of planted bugs, and how a module adds to it.

A mutant is a function that plants one bug; its name says what is wrong then. Noted with it are the
rule that is left out, by its number in manychar.protocol (a word stands for a promise beside the
rules), the kind of schedule in which it is looked for, and the invariants that may find it.

Left to other tests: rule 11 is a definition; the lock, the term file and checkpoint 0 of rule 13,
the mailbox of rule 16 and the probe of rule 17 belong to the shells; a newer server's term (12) and
mixed numerics (10) are stories in tests/protocol.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One planted bug, and where and how it is found."""

    rule: str
    name: str
    kind: str
    invariants: tuple[str, ...]
    plant: Plant

    def __str__(self) -> str:
        return f"{self.rule}: {self.name}"


_MUTANTS: list[Mutant] = []


def mutant(rule: str, kind: str, *invariants: str) -> Callable[[Plant], Plant]:
    """Note a function that plants a bug."""

    def note(plant: Plant) -> Plant:
        name = plant.__name__.strip("_").replace("_", " ")
        _MUTANTS.append(Mutant(rule, name, kind, invariants, plant))
        return plant

    return note


def planted_in(*modules: ModuleType) -> list[Mutant]:
    """Return the mutants of these modules."""
    names = {module.__name__ for module in modules}
    return [each for each in _MUTANTS if each.plant.__module__ in names]
