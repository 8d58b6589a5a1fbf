"""A side's process: pin, prepare, say that it is ready, then go once for each line that comes."""

import importlib
import json
import os
import sys

from manychar.processes.numerics_pinning import pin
from tests.benchmarks.task import Task


def main(name: str, text: str) -> None:
    """Answer on standard output until standard input ends; all else goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = Task.from_json(text)
    if task.numerics:
        pin(task.numerics)
    note, go = importlib.import_module(f"tests.benchmarks.sides.{name}").prepare(task)
    print(json.dumps({"ready": note}), file=answers, flush=True)
    for line in sys.stdin:
        figure = go(line.removeprefix("go").strip())
        print(json.dumps({"figure": figure}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
