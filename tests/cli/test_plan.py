"""`manychar plan` says what to expect; it reads no text and does not import numpy."""

import os
import re
import subprocess
import sys

import pytest

from manychar.fleet.capacity import Fleet, predict
from manychar.protocol.dimensions import Dimensions
from tests.commands import Commands

WITHOUT_NUMPY = """
import sys
from manychar.cli.app import run
code = run(["plan", "--workers", "256", "--hidden", "512"])
sys.exit(code or "numpy" in sys.modules)
"""


def test_it_says_what_the_formula_gives(manychar: Commands) -> None:
    flags = ("--workers", "256", "--hidden", "512", "--streams", "32", "--no-keys")
    done = manychar.run("plan", *flags, "--shards", "512", "--gbits", "1", "--shard-ms", "40")
    assert (done.code, done.err) == (0, "")
    size = Dimensions(
        vocabulary_size=103, hidden=512, seq_length=25, streams=32, shards=512, dtype="float32"
    )
    found = predict(Fleet(size=size, workers=256, gbits=1.0, keys=False, shard_seconds=0.04))
    assert "256 of 256 workers compute 512 shards of 32 streams: " in done.out
    assert f"{1 / found.seconds:,.3g} steps/s" in done.out
    assert f"{512 * 32 * 25 / found.seconds:,.0f} characters/s" in done.out
    assert f"receives {found.bytes_in / found.seconds / 1e6:,.3g} MB/s" in done.out
    assert f"the limit is {found.limit}: " in done.out
    assert found.limit == "network"
    assert "faster link" in done.out


def test_relays_are_predicted_too(manychar: Commands) -> None:
    done = manychar.run("plan", "--workers", "256", "--relays", "16", "--hidden", "512")
    size = Dimensions(
        vocabulary_size=103, hidden=512, seq_length=25, streams=1, shards=256, dtype="float32"
    )
    found = predict(Fleet(size=size, workers=256, relays=16))
    assert "256 of 256 workers behind 16 relays compute 256 shards" in done.out
    assert f"{1 / found.seconds:,.3g} steps/s" in done.out
    assert f", relay {1000 * found.relay:,.3g}; they overlap" in done.out
    alone = predict(Fleet(size=size, workers=256))
    assert found.seconds < alone.seconds / 3
    assert found.bytes_in == pytest.approx(alone.bytes_in / 16, rel=0.2)


def test_it_takes_less_than_a_second(manychar: Commands) -> None:
    """By the time on a core, which other processes do not lengthen much."""
    before = os.times()
    flags = ("--workers", "65536", "--relays", "256", "--shards", "65536", "--hidden", "64")
    done = manychar.run("plan", *flags)
    after = os.times()
    assert done.code == 0, done.err
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 1


def test_more_relays_than_workers_are_refused(manychar: Commands) -> None:
    done = manychar.run("plan", "--workers", "2", "--relays", "3")
    assert (done.code, done.out) == (2, "")
    assert done.last_line.endswith("--relays 3: more than --workers, 2")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--hidden=40000", "the weights take 6.0 GiB"),
        ("--workers=1024 --streams=65536", "a step's hidden states take 25.0 GiB"),
        ("--streams=65536 --hidden=1 --seq-length=65536", "a step's characters take 16.0 GiB"),
    ],
)
def test_a_run_that_train_would_refuse_is_refused(
    manychar: Commands, flags: str, said: str
) -> None:
    done = manychar.run("plan", *flags.split())
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"{said}; allowed: at most 2 GiB" in done.err


def test_the_defaults_are_those_of_train(manychar: Commands) -> None:
    done = manychar.run("plan", "--workers", "8", "--hidden", "256", "--shards", "4")
    assert re.match(r"4 of 8 workers compute 4 shards of 8 streams: ", done.out)


def test_it_is_quick() -> None:
    command = [sys.executable, "-c", WITHOUT_NUMPY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("flag", ["workers", "hidden", "gbits", "shard-ms"])
def test_a_value_out_of_bounds_is_one_line(manychar: Commands, flag: str) -> None:
    done = manychar.run("plan", f"--{flag}", "0")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert f"--{flag}" in done.err


def test_what_helps_idle_workers_and_slow_steps_is_readable(manychar: Commands) -> None:
    few = manychar.run("plan", "--workers", "4", "--shards", "2")
    assert "2 of 4 workers compute 2 shards" in few.out
    assert "the limit is computing: more --shards" in few.out
    server = ("--workers", "256", "--hidden", "512", "--streams", "32")
    assert manychar.run("plan", *server).out.endswith(" shards each, or --relays\n")
    relayed = manychar.run("plan", *server, "--relays", "64").out
    assert relayed.endswith(" shards each, or another number of --relays\n")
    flags = ("--workers", "64", "--shards", "64", "--hidden", "2048", "--streams", "8")
    slow = manychar.run("plan", *flags)
    assert re.search(r"a step takes \d,\d{3} ms: ", slow.out)
    assert "e+" not in slow.out
    spare = manychar.run("plan", "--workers", "3", "--shards", "4")
    assert "2 of 3 workers compute 4 shards" in spare.out, "a step with two is as short"
    assert "the limit is computing: more --shards" in spare.out
