"""The simulated world notices every planted bug, and says by which invariant (see planted.py)."""

import pytest

from manychar.protocol.membership import Membership
from tests.simulation import mutants_of_bytes, mutants_of_order, mutants_of_relays
from tests.simulation.faults import Schedule
from tests.simulation.planted import Mutant, planted_in
from tests.simulation.violation import Violation
from tests.simulation.world import World

SEEDS = 400
MUTANTS = planted_in(mutants_of_bytes, mutants_of_order, mutants_of_relays)


def first_violation(kind: str, known: int) -> tuple[Schedule, Violation] | None:
    """Return a schedule of this kind that breaks an invariant: the known one, or the first."""
    for seed in (known, *range(SEEDS)):
        schedule = Schedule(seed, kind)
        try:
            World(schedule).run()
        except Violation as violation:
            return schedule, violation
    return None


def check_that_it_is_noticed(mutant: Mutant, patch: pytest.MonkeyPatch) -> None:
    """Plant the bug, and look for it."""
    mutant.plant(patch)
    caught = first_violation(mutant.kind, mutant.seed)
    assert caught, f"{SEEDS} schedules of kind {mutant.kind} did not notice it"
    schedule, violation = caught
    print(f"rule {mutant}: {schedule}: {violation}")
    assert violation.invariant in mutant.invariants


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_planted_bug_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    check_that_it_is_noticed(mutant, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if "duplicate" not in m.name], ids=str)
def test_it_is_noticed_without_duplicates(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another worker computes, too, must not be what hides a bug."""
    monkeypatch.setattr(Membership, "lease_duplicate", lambda *_: None)
    check_that_it_is_noticed(mutant, monkeypatch)
