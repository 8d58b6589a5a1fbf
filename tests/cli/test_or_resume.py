"""`--or-resume`: the same command begins a run and goes on with it, and never with another one."""

import re
from pathlib import Path

import pytest

from manychar.storage.run_directory import RECOVERY_NAME, open_run
from tests.commands import SMALL, Commands
from tests.fleet.test_fleet import expect_same_bits

START = ("--run-dir", "run", "--or-resume", *SMALL, "--sample-every", "0", "--workers", "1")


@pytest.mark.long
def test_without_samples_on_the_way_there_is_one_at_the_end(manychar: Commands, text: Path) -> None:
    for steps in ("30", "60"):
        flags = ("--sample-length", "9", "--steps", steps)
        done = manychar.run("train", str(text), *START, *flags)
        assert done.code == 0, done.err
        assert re.findall("--- step (.*) ---", done.out) == [steps]


def test_the_same_command_begins_and_goes_on_to_the_same_bits(
    manychar: Commands, text: Path
) -> None:
    first = manychar.run("train", str(text), *START, "--steps", "40")
    assert first.code == 0, first.err
    assert "run directory: run" in first.err
    again = manychar.run("train", str(text), *START, "--steps", "90")
    assert again.code == 0, again.err
    assert "resuming the run in run" in again.err
    run = manychar.directory / "run"
    assert (run / "term").read_text() == "2\n"
    assert expect_same_bits(run, text) == 90


def test_the_line_that_resumes_has_what_the_run_does_not_keep(
    manychar: Commands, trained: Path
) -> None:
    given = ("--workers", "2", "--no-compute", "--log-every", "5", "--steps", "310")
    done = manychar.run("train", "--resume", "run", *given)
    assert done.code == 0, done.err
    known = "--workers=2 --log-every=5.0 --no-compute"
    assert f"resume: manychar train {known} --resume run" in done.err


@pytest.mark.parametrize("command", ["train", "server"])
def test_a_run_that_has_come_further_is_not_resumed_to_an_earlier_step(
    manychar: Commands, trained: Path, command: str
) -> None:
    newest = trained / "checkpoints" / "step-000000300.safetensors"
    newest.rename(newest.with_name(RECOVERY_NAME))
    bind = ("--bind", "ipc://here") if command == "server" else ()
    done = manychar.run(command, "--resume", "run", "--steps", "299", *bind)
    assert (done.code, done.err) == (
        2,
        "manychar: --steps=299: the run in run is at step 300 already; give more --steps\n",
    )
    for flags in (("--resume", "run", "--steps", "300"), ("--or-resume", "--run-dir", "run")):
        again = manychar.run(command, *flags, *bind)
        assert again.code == 0, again.err
        assert "finished at step 300" in again.err


def test_the_command_line_of_a_run_that_has_come_further_ends_well(
    manychar: Commands, trained: Path
) -> None:
    """A supervisor starts the same command line again, also where the run was taken further."""
    done = manychar.run("train", "--or-resume", "--run-dir", "run", "--steps", "200")
    assert done.code == 0, done.err
    assert "the run in run is at step 300 already: --steps 200 asks for nothing more\n" in done.err
    assert "finished at step 300" in done.err
    assert "300/200" not in done.err
    assert open_run(trained).operation.steps == 300, "status and dashboard show it, too"


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--seed", "7"), "--seed=7: the run in run has --seed=0; leave it out, or choose"),
        (("--seq-length", "4"), "--seq-length=4: the run in run has --seq-length=5"),
        (("--numerics", "native"), "--numerics=native: the run in run has --numerics=portable"),
        (("other.txt",), "text: the run in run has another one; leave it out, or choose"),
        (("--resume", "run"), "--resume and --or-resume: give one of them"),
    ],
)
def test_another_run_is_refused(
    manychar: Commands, trained: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    (manychar.directory / "other.txt").write_text("something else\n" * 300)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    done = manychar.run("server", "--run-dir", "run", "--or-resume", *arguments)
    assert done.code == 2
    assert complaint in done.last_line
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_it_needs_a_place(manychar: Commands) -> None:
    done = manychar.run("server", "--or-resume")
    assert done.code == 2
    assert done.err == "manychar: --or-resume: needs --run-dir, the same one at every start\n"


def test_a_run_is_resumed_with_the_options_that_it_has(
    manychar: Commands, text: Path, trained: Path
) -> None:
    """As those in a file of --print-config are; one that differs is named with its origin."""
    printed = manychar.run("train", str(text), *SMALL, "--run-dir", "run", "--print-config")
    (manychar.directory / "run.toml").write_text(printed.out)
    resume = ("train", "--resume", "run", "--config", "run.toml", "--steps", "310")
    done = manychar.run(*resume, "--hidden", "8")
    assert done.code == 0, done.err
    assert "finished at step 310" in done.err
    other = printed.out.replace("seed = 0", "seed = 7")
    (manychar.directory / "run.toml").write_text(other)
    kept = "the run in run has --seed=0; leave it out, or begin a new run\n"
    done = manychar.run(*resume)
    assert (done.code, done.err) == (2, f"manychar: run.toml: seed = 7: --seed=7: {kept}")
    done = manychar.run(*resume, "--seed", "8")
    assert (done.code, done.err) == (2, f"manychar: --seed=8: {kept}")


def test_another_text_of_a_file_is_named_with_it(manychar: Commands, trained: Path) -> None:
    (manychar.directory / "other.txt").write_text("something else\n" * 300)
    (manychar.directory / "run.toml").write_text('text = ["other.txt"]\n')
    done = manychar.run("train", "--resume", "run", "--config", "run.toml")
    assert done.code == 2
    assert done.err.startswith('manychar: run.toml: text = ["other.txt"]: text: the run in run has')
