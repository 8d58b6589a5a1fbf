"""The command: runs the rows that were named, or all, and prints Markdown."""

import argparse
import importlib
import math
import tempfile
from pathlib import Path

from manychar.processes.errors import INTERRUPTED
from tests.benchmarks.asking import SideError
from tests.benchmarks.machine import describe
from tests.benchmarks.plan import MissingError, Plan
from tests.benchmarks.program import program_of
from tests.benchmarks.rows.targets import PARTS

ROWS = {
    "one": "one process beside plain min-char-rnn",
    "peak": "one process beside sgemm's peak",
    "torch": "one process beside PyTorch eager",
    "targets": "fleets and the exchange beside fc2e580, one process, PyTorch DDP and Ray",
    "workers": "speed by workers and hidden units, beside one process",
    "many": "a server with 1 to 1,000 workers that compute nothing",
    "curve": "the price of keys: the same fleet with and without them",
    "validation": "the price of validating checkpoints",
    "update": "the server's update beside the plain NumPy form",
    "vocabulary": "columns of Wxh that are not sent, by the links' speed",
    "texts": "how fast texts are read and encoded",
    "recipe": "study: learning rate, warm-up and streams by size, and the defaults",
    "parts": "study: what each part of one process's step costs",
    "relays": "the server's time and the exchange with relays, beside the same without them",
    "profile": "study: what a step of a fleet costs each thread",
    "shared": "study: tensors through shared memory instead of a socket",
    "capacity": "study: the costs by which fleets are planned, and what they predict",
}


def main() -> int:
    """Run; return 1 if a row failed."""
    chosen = _arguments()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="manychar-") as folder:
        scratch = Path(folder)
        text = chosen.text.resolve() if chosen.text else _default_text(scratch)
        plan = Plan(
            text=text,
            scratch=scratch,
            before=chosen.before,
            part=chosen.part,
            rounds=chosen.rounds,
            seconds=chosen.seconds,
            seeds=chosen.seeds,
            cap=chosen.cap,
            results=chosen.results,
        )
        print(describe(), flush=True)
        print(_about(plan), flush=True)
        try:
            for name in chosen.names or ROWS:
                failed += not _show(name, plan)
        except KeyboardInterrupt:
            return INTERRUPTED
    return 1 if failed else 0


def _show(name: str, plan: Plan) -> bool:
    """Print what a row yields; a line where it could not be done."""
    row = importlib.import_module(f"tests.benchmarks.rows.{name}")
    try:
        for piece in row.run(plan):
            print(f"\n{piece}".rstrip("\n"), flush=True)
    except MissingError as error:
        print(f"\n{name}: left out: {error}", flush=True)
    except SideError as error:
        print(f"\n{name}: failed: {error}", flush=True)
        return False
    return True


def _about(plan: Plan) -> str:
    text = plan.text.read_text(encoding="utf-8")
    return (
        f"{plan.text.name}: {len(text):,} characters, {len(set(text))} distinct; T 25;"
        f" median (lowest … highest) of {plan.rounds} rounds of {plan.seconds:g} s, interleaved."
    )


def _default_text(scratch: Path) -> Path:
    from manychar.storage.text_file import default_text  # noqa: PLC0415 - only where it is used

    path = scratch / "language-reference.txt"
    path.write_text(default_text(), encoding="utf-8")
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure this program beside others, and print Markdown tables.",
        epilog="\n".join(f"{name:<10}{what}" for name, what in ROWS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run; all if none")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each comparison (7)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement (3)")
    parser.add_argument("--seeds", type=int, default=9, help="runs to a loss, each (9)")
    parser.add_argument("--cap", type=float, default=60.0, help="seconds of a run to a loss (60)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="the language reference if none")
    parser.add_argument("--part", default="", help="one part of the row targets", choices=PARTS)
    parser.add_argument("--before", metavar="PYTHON", help="an environment's with fc2e580")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keeps recipe's trainings")
    chosen = parser.parse_args()
    if strange := [name for name in chosen.names if name not in ROWS]:
        parser.error(f"no such row: {', '.join(strange)}; there are {', '.join(ROWS)}")
    if chosen.rounds < 1 or not 0 < chosen.seconds < math.inf or chosen.seeds < 1:
        parser.error("--rounds and --seeds take at least 1, --seconds more than 0")
    if chosen.text and not chosen.text.is_file():
        parser.error(f"--text {chosen.text}: no such file")
    try:
        chosen.before = program_of(chosen.before) if chosen.before else None
    except ValueError as error:
        parser.error(f"--before {error}")
    return chosen


if __name__ == "__main__":
    raise SystemExit(main())
