"""What it saves to leave out the columns of Wxh that a unit did not see, by the links' speed."""

import contextlib
import itertools
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from manychar.numerics.model import count_parameters
from tests.benchmarks.plan import MissingError, Plan

CHARACTERS, HIDDEN, WORKERS, STEPS = 5_000, 1_024, 2, 16
UNIT = 2 * 8 * 25  # characters: of 32 streams, two workers
FLAGS = (
    f"--hidden {HIDDEN} --steps {STEPS} --insecure"
    " --checkpoint-every 0 --sample-every 0 --sample-length 0"
)
RATES = {"1 Gbit/s": ("1gbit", "512kb"), "10 Gbit/s": ("10gbit", "4mb")}
PROGRAM = """
import manychar.protocol.unit_payload
from manychar.__main__ import main
manychar.protocol.unit_payload.SPARSE_FROM = {least}
main()
"""
FORMS = {"all columns": 2**53, "columns that were seen": 1}
LISTEN = "tcp://10.231.9.1:5577"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in seconds a step."""
    if os.geteuid() != 0 or not shutil.which("tc"):
        raise MissingError("hosts with slow links need root and tc")
    text = plan.scratch / "characters"
    text.write_text(frequent_and_rare(600_000), encoding="utf-8")
    yield (
        f"Seconds a step, {CHARACTERS:,} characters, H {HIDDEN:,}, {WORKERS} workers on hosts of"
        f" their own. {of_messages(text.read_text(encoding='utf-8'))}:\n"
    )
    rows = ["| link | all columns | columns that were seen | ratio |", "|" + " --- |" * 4]
    for link, (rate, burst) in RATES.items():
        found: dict[str, list[float]] = {form: [] for form in FORMS}
        with hosts(rate, burst) as names:
            for number in range(plan.rounds):
                for form in list(FORMS)[:: 1 if number % 2 else -1]:
                    found[form].append(seconds_a_step(names, text, plan.scratch, FORMS[form]))
        pairs = zip(*found.values(), strict=True)
        cells = [f"{statistics.median(times):.2f}" for times in found.values()]
        cells.append(f"{statistics.median(a / b for a, b in pairs):.2f}x")
        rows.append(f"| {link} | {' | '.join(cells)} |")
    yield "\n".join(rows)


def of_messages(text: str) -> str:
    """Say how long a unit's message is, with all columns and without."""
    seen = [len(set(text[at : at + UNIT])) for at in range(0, len(text) - UNIT, UNIT)]
    whole = 4 * count_parameters(CHARACTERS, HIDDEN)
    short = whole - 4 * HIDDEN * (CHARACTERS - statistics.mean(seen))
    return (
        f"A unit of {UNIT} characters sees {statistics.mean(seen):.0f} different ones:"
        f" {short / 1e6:.1f} MB instead of {whole / 1e6:.1f}"
    )


def frequent_and_rare(length: int) -> str:
    """Return a text with frequent and rare characters, as Chinese has them; all of them occur."""
    share = 1 / (np.arange(CHARACTERS) + 30.0)
    drawn = np.random.default_rng(1).choice(CHARACTERS, length, p=share / share.sum())
    return "".join(map(chr, 0x4E00 + np.concatenate([drawn, np.arange(CHARACTERS)])))


@contextlib.contextmanager
def hosts(rate: str, burst: str) -> Iterator[list[str]]:
    """Yield the names of a server's host and of the workers', on a switch with links so fast."""
    prefix = f"b{secrets.token_hex(3)}"
    names = [f"{prefix}{number}" for number in range(1 + WORKERS)]
    shaped = ("root", "tbf", "rate", rate, "burst", burst, "latency", "50ms")
    with contextlib.ExitStack() as stack:
        _do("ip", "link", "add", f"{prefix}br", "type", "bridge")
        stack.callback(_do, "ip", "link", "delete", f"{prefix}br")
        _do("ip", "link", "set", f"{prefix}br", "up")
        for number, name in enumerate(names, 1):
            outside, inside = f"{name}p", ("ip", "-n", name)
            _do("ip", "netns", "add", name)
            stack.callback(_do, "ip", "netns", "delete", name)
            _do("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            _do("ip", "link", "set", outside, "master", f"{prefix}br", "up")
            _do(*inside, "link", "set", "lo", "up")
            _do(*inside, "link", "set", "eth0", "up")
            _do(*inside, "address", "add", f"10.231.9.{number}/24", "dev", "eth0")
            _do("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "eth0", *shaped)
            _do("tc", "qdisc", "add", "dev", outside, *shaped)
        yield names


def seconds_a_step(names: list[str], text: Path, scratch: Path, least: int) -> float:
    """Train, and return the median time of a step."""
    folder = scratch / "run"
    program = (sys.executable, "-P", "-c", PROGRAM.format(least=least))
    flags = (*FLAGS.split(), "--bind", LISTEN, "--run-dir", str(folder))
    arguments = [("server", str(text), *flags), *[("worker", LISTEN)] * WORKERS]
    started = [
        subprocess.Popen(["ip", "netns", "exec", name, *program, *words], stderr=subprocess.DEVNULL)
        for name, words in zip(names, arguments, strict=True)
    ]
    seen: dict[int, float] = {}
    while started[0].poll() is None:
        with contextlib.suppress(OSError):
            steps = (folder / "journal.jsonl").read_bytes().count(b'"loss"')
            seen.setdefault(steps, time.monotonic())
        time.sleep(0.003)
    for process in started:
        process.wait()
    shutil.rmtree(folder)
    (first, began), *_, (last, ended), _ = itertools.islice(seen.items(), 2, None)
    return (ended - began) / (last - first)


def _do(*command: str) -> None:
    subprocess.run(command, check=True)
