"""Repeat one schedule and show its transcript, or replay a recording of one.

python -m tests.simulation KIND SEED
python -m tests.simulation record KIND SEED FILE
python -m tests.simulation replay FILE [MACHINE]
"""

import sys
from pathlib import Path

from tests.simulation.faults import Schedule
from tests.simulation.recording import record, replay
from tests.simulation.violation import Violation
from tests.simulation.world import World


def main(words: list[str]) -> None:
    """Do what the words say."""
    match words:
        case ["record", kind, seed, path]:
            print(record(Schedule.parse(f"{kind} {seed}"), Path(path)))
        case ["replay", path, *machine]:
            print(*replay(Path(path), *machine), sep="\n")
        case [kind, seed]:
            lines: list[str] = []
            world = World(Schedule.parse(f"{kind} {seed}"), transcript=lines)
            try:
                world.run()
            except Violation as violation:
                lines.append(f"VIOLATION {violation}")
            print(world.plan, *lines, sep="\n")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
