"""An option is declared in one place; everything else follows from the declaration."""

import json
import re
from pathlib import Path

import pytest

from manychar.cli.verify import CORES
from manychar.cli.worker import PROCESSES
from manychar.numerics.option import Option, options_of
from manychar.numerics.run_definition import choose_streams
from manychar.protocol.run_operation import Operation, as_many_as_useful, choose_steps
from tests.commands import SMALL, Commands

ADDED = """
import dataclasses
from manychar.numerics import run_definition
from manychar.numerics.option import Formula, option
from manychar.protocol import run_operation

@dataclasses.dataclass(frozen=True, kw_only=True)
class Definition(run_definition.Definition):
    decay: float = option(0.5, "Decay of a test.", roles=("train",), least=0, below=1)
    twice: int = option(
        Formula("2 * hidden", lambda hidden: 2 * hidden), "Twice.", roles=("train",)
    )

@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation(run_operation.Operation):
    pause_every: int = option(7, "Steps.", roles=("train", "server"), least=1, most=9)

run_definition.Definition = Definition
run_operation.Operation = Operation
"""


@pytest.fixture
def manychar(manychar: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Every process of these commands has two more options of a run."""
    (tmp_path / "added").mkdir()
    (tmp_path / "added" / "sitecustomize.py").write_text(ADDED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'added'}:{Path(__file__).parent.parent.parent}")
    return manychar


@pytest.mark.parametrize(
    "processes", [options_of(Operation)["workers"][1], PROCESSES, CORES], ids=lambda o: o.help
)
def test_a_command_starts_256_processes_at_most(processes: Option) -> None:
    assert processes.allows(256)
    assert not processes.allows(257)


@pytest.mark.parametrize(("shards", "cores", "workers"), [(4, 2, 2), (4, 8, 4), (512, 384, 256)])
def test_the_default_number_of_workers_is_an_allowed_one(
    shards: int, cores: int, workers: int
) -> None:
    assert as_many_as_useful(shards, cores) == workers
    assert Operation(steps=1, workers=workers, compute=False).workers == workers


def test_default_runs_read_as_many_characters_whatever_their_size() -> None:
    read = {choose_steps(hidden) * choose_streams(hidden, 4) for hidden in (1, 100, 255, 256, 1024)}
    assert len(read) == 1


def test_help_reference_file_and_checks_follow_from_one_declaration(manychar: Commands) -> None:
    shown = re.sub(r"[\s│]+", " ", manychar.run("train", "--help").out)
    assert "--decay <float> Decay of a test. [0.5]" in shown
    assert "--twice <int> Twice. [2 * hidden]" in shown
    assert "--pause-every <int> Steps. [7]" in shown
    script = "from tests.command_reference import reference; print(reference())"
    reference = manychar.run(program=("-c", script)).out
    assert "- `--decay <float>` Decay of a test. [0.5]\n" in reference
    (manychar.directory / "c.toml").write_text("decay = 0.25\n")
    printed = manychar.run("train", "--config", "c.toml", "--print-config").out
    assert "decay = 0.25\n" in printed
    assert "pause_every = 7\n" in printed
    assert "# twice = 2 * hidden\n" in printed
    refused = manychar.run("train", "--pause-every", "10")
    assert (
        refused.err
        == "manychar: --pause-every is 10; allowed: a whole number at least 1 and at most 9\n"
    )


@pytest.mark.long
def test_a_run_and_its_server_get_it(manychar: Commands, text: Path) -> None:
    flags = (*SMALL, "--steps", "2", "--run-dir", "run", "--decay", "0.25", "--workers", "1")
    done = manychar.run("train", str(text), *flags)
    assert done.code == 0, done.err
    path = manychar.directory / "run" / "config.json"
    config = json.loads(path.read_text())
    assert config["definition"]["decay"] == 0.25
    assert config["definition"]["twice"] == 16
    assert config["operation"]["pause_every"] == 7
    again = manychar.run("train", "--resume", "run", "--steps", "3", "--pause-every", "8")
    assert again.code == 0, again.err
    assert json.loads(path.read_text())["operation"]["pause_every"] == 8
    other = manychar.run("train", "--resume", "run", "--decay", "0.5")
    assert other.err.startswith("manychar: --decay=0.5: the run in run has --decay=0.25; leave")


@pytest.mark.long
def test_the_python_api_takes_it(manychar: Commands, text: Path) -> None:
    small = "hidden=8, seq_length=5, streams=2, workers=1, sample_every=0"
    script = f"""
import inspect, manychar, pathlib
print(inspect.signature(manychar.train).parameters["decay"])
print("decay: Decay of a test." in manychar.train.__doc__)
print(inspect.signature(manychar.train).parameters["twice"])
run = manychar.train(pathlib.Path({str(text)!r}), {small}, decay=0.125, steps=2, run_dir="run")
run.resume(steps=3, pause_every=9)
"""
    done = manychar.run(program=("-c", script))
    assert done.code == 0, done.err
    assert done.out.startswith("decay: float = 0.5\nTrue\ntwice: int = 2 * hidden\n")
    config = json.loads((manychar.directory / "run" / "config.json").read_text())
    assert config["definition"]["decay"] == 0.125
    assert config["operation"]["pause_every"] == 9
