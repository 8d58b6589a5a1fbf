"""`--init-from`: another text, rate and batch, from the weights of a checkpoint; its hash holds."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from manychar.numerics.training_step import weights_sha256
from manychar.processes.errors import UserError
from manychar.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from manychar.storage.run_directory import open_run
from tests.commands import Commands, Ended
from tests.texts import small_text

FIRST, NEWEST = (f"checkpoints/step-{step:09d}.safetensors" for step in (0, 300))
OTHER = ("--seq-length", "7", "--streams", "1", "--learning-rate", "0.02", "--steps", "40")
TUNE = ("train", "other.txt", "--init-from", f"run/{NEWEST}", *OTHER, "--workers", "2")


@pytest.fixture
def given(trained: Path) -> Checkpoint:
    """The checkpoint to start from; other.txt is its text backwards."""
    trained.with_name("other.txt").write_text(small_text()[::-1])
    return read_checkpoint(trained / NEWEST)


def tune(manychar: Commands, *flags: str) -> Ended:
    return manychar.run(*TUNE, "--run-dir", "tuned", *flags)


def test_a_run_from_a_checkpoint_s_weights(manychar: Commands, given: Checkpoint) -> None:
    done = tune(manychar)
    assert done.code == 0, done.err
    run, weights = manychar.directory / "tuned", given.state.parameters
    found = read_checkpoint(run / FIRST)
    assert found.vocabulary == given.vocabulary
    assert found.state.parameters.flat.tobytes() == weights.flat.tobytes()
    assert found.state.step == 0
    assert not found.state.memory.any()
    assert not found.state.hidden.any()
    assert found.state.smooth_loss == 7 * math.log(len(given.vocabulary))
    definition = json.loads((run / "config.json").read_text())["definition"]
    assert definition["initial_weights"] == weights_sha256(weights)
    assert (definition["hidden"], definition["learning_rate"]) == (8, 0.02)
    verified = manychar.run("verify", "tuned")
    assert verified.out == "the same bits: 40 steps, 2 checkpoints\n", verified.err

    wrong = dataclasses.replace(
        found.state, parameters=weights.like(weights.flat + weights.flat.dtype.type(1))
    )
    (run / FIRST).unlink()
    write_checkpoint(run / FIRST, found.definition, found.vocabulary, wrong)
    with pytest.raises(UserError, match="altered: other weights than those of --init-from"):
        open_run(run).read(run / FIRST)


def test_what_is_printed_of_its_flags_begins_and_resumes_it(
    manychar: Commands, given: Checkpoint
) -> None:
    printed = tune(manychar, "--unknown", "skip", "--print-config")
    (manychar.directory / "tuned.toml").write_text(printed.out)
    for flags in ((), ("--resume", "tuned", "--steps", "50")):
        done = manychar.run("train", "--config", "tuned.toml", *flags)
        assert done.code == 0, done.err
    run = open_run(manychar.directory / "tuned")
    assert run.definition.initial_weights == weights_sha256(given.state.parameters)
    assert run.newest_step() == 50


@pytest.mark.long
def test_equivalence_from_a_checkpoint(manychar: Commands, given: Checkpoint) -> None:
    flags = ("--streams", "1", "--steps", "600", "--init-from", "run")
    done = manychar.run("equivalence", "other.txt", *flags)
    assert done.code == 0, done.err
    (row,) = (line.split() for line in done.out.splitlines() if line.split()[0] == "0")
    assert set(row[1:]) == {weights_sha256(given.state.parameters)[:16]}


@pytest.mark.long
def test_unknown_characters_are_refused_or_skipped(manychar: Commands, given: Checkpoint) -> None:
    other = manychar.directory / "other.txt"
    known = other.read_text()
    other.write_text("\N{SNOWMAN}" + known[:100] + "\N{SNOWMAN}" + known[100:])
    refused = tune(manychar)
    assert refused.code == 2
    assert refused.last_line == (
        "manychar: the model does not know 2 characters of other.txt"
        " (--unknown=skip leaves them out): '\N{SNOWMAN}' (U+2603)"
    )
    assert not (manychar.directory / "tuned").exists()
    done = tune(manychar, "--unknown", "skip")
    assert done.code == 0, done.err
    assert "does not know 2 characters of other.txt: '\N{SNOWMAN}' (U+2603); skipped" in done.err
    used = f"{len(known):,} characters, of the checkpoint's vocabulary of"
    assert f"other.txt: {used} {len(given.vocabulary)}\n" in done.err
    other.write_text(known)
    again = tune(manychar, "--or-resume", "--steps", "42")
    assert again.code == 0, again.err
    assert "resuming the run in tuned" in again.err, "it is the run of the text that is left"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ((*TUNE, "--hidden", "8"), f"--hidden: run/{NEWEST} has its own; leave it out with --init"),
        ((*TUNE, "--dtype", "float64"), "--dtype: run/"),
        (("train", "--resume", "run", "--init-from", "run"), "--init-from="),
        (
            ("train", "--resume", "run", "--run-dir", "other"),
            "--run-dir: leave it out: --resume names the run's directory\n",
        ),
        (("train", "--or-resume", "--run-dir", "run", "--init-from", "run"), "--init-from="),
        (("train", "--init-from", "nowhere"), "nowhere: no such file"),
        (
            ("train", "--init-from", "other.txt"),
            "other.txt: truncated, altered or not a checkpoint: give RUN, or a file of RUN/check",
        ),
        (("train", "other.txt", "--unknown", "skip"), "--unknown=skip: needs --init-from; the voc"),
        (("server", "other.txt", "--unknown", "skip"), "--unknown=skip: needs --init-from"),
        (("equivalence", "other.txt", "--unknown", "skip"), "--unknown=skip: needs --init-from"),
    ],
)
def test_what_contradicts_it_is_refused(
    manychar: Commands, given: Checkpoint, command: tuple[str, ...], complaint: str
) -> None:
    assert given.definition.initial_weights is None
    done = manychar.run(*command)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert complaint in done.err


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ((*TUNE, "--unknown", "skip"), "the model knows none of the 3 characters of other.txt: "),
        (TUNE, "other.txt: '\u2603' (U+2603); give a text of its characters\n"),
        (
            ("evaluate", "run", "other.txt", "--unknown", "skip"),
            "the model knows none of the 3 characters of other.txt: ",
        ),
    ],
)
def test_a_text_of_unknown_characters_alone_is_not_called_empty(
    manychar: Commands, given: Checkpoint, command: tuple[str, ...], complaint: str
) -> None:
    (manychar.directory / "other.txt").write_text("\u2603" * 3, encoding="utf-8")
    done = manychar.run(*command)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert complaint in done.err
