"""A recording gives the same effects again, and shows a planted bug without the world."""

from pathlib import Path

import pytest

from tests.simulation import mutants_of_bytes
from tests.simulation.__main__ import main
from tests.simulation.faults import Schedule
from tests.simulation.planted import planted_in
from tests.simulation.recording import record, replay

BUG = "a worker forgets what it has sent"


@pytest.mark.parametrize("kind", ["none", "mixed", "moves", "server-crash", "broken"])
def test_the_same_events_give_the_same_effects(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    assert record(Schedule(3, kind), path) is None
    *machines, end = replay(path)
    assert end == "recorded: None"
    assert len(machines) > 1
    assert [line for line in machines if not line.endswith(", the same outcomes")] == []


def test_a_planted_bug_is_reproduced_by_its_recording_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bug,) = [each for each in planted_in(mutants_of_bytes) if each.name == BUG]
    path = tmp_path / "recording"
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        for seed in range(100):
            if (violation := record(Schedule(seed, bug.kind), path)) is not None:
                break
        assert violation is not None
        main(["replay", str(path)])
        shown = capsys.readouterr().out
        assert f"recorded: {violation}" in shown
        assert "another outcome" not in shown
    main(["replay", str(path)])
    assert "another outcome" in capsys.readouterr().out  # without the bug
