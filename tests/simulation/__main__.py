"""Repeat one schedule and show its transcript: python -m tests.simulation KIND SEED."""

import sys

from tests.simulation.faults import Schedule
from tests.simulation.violation import Violation
from tests.simulation.world import World

if __name__ == "__main__":
    lines: list[str] = []
    world = World(Schedule.parse(" ".join(sys.argv[1:3])), transcript=lines)
    try:
        world.run()
    except Violation as violation:
        lines.append(f"VIOLATION {violation}")
    print(world.plan, *lines, sep="\n")
