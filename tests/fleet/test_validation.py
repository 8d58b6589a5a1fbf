"""Validation, for real: losses beside training, the best checkpoint, where a run ends."""

import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree

import pytest

from manychar.api import Run
from manychar.fleet import validation_process
from manychar.fleet.validation_process import ValidationProcess
from manychar.network.event_loop import EventLoop
from manychar.processes import child_process, supervisor
from manychar.processes.errors import UserError
from manychar.storage import validation_log as storage_validation_log
from manychar.storage.append_log import LogReader
from manychar.storage.checkpoint import checkpoint_path, list_checkpoints, read_checkpoint
from manychar.storage.journal import read_metrics
from manychar.storage.run_directory import RunDirectory, open_run
from manychar.storage.validation_log import (
    VALIDATION_NAME,
    append_result,
    best_checkpoint,
    read_validation_losses,
    resume_validation,
    validation_log,
)
from tests.commands import ONE_WORKER, SMALL, Commands, until
from tests.single_process import bits_alone, bits_of
from tests.texts import small_text

VALIDATED = (*SMALL, "--validation", "0.1", "--checkpoint-every", "20", "--sample-every", "0")


def train(manychar: Commands, text: Path, run: str, *more: str) -> str:
    """Train a validated run to its end; return what was said."""
    done = manychar.run("train", str(text), "--run-dir", run, *VALIDATED, *more)
    assert done.code == 0, done.err
    return done.err


@pytest.fixture(scope="session")
def validated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validated run of 60 steps that has all of its checkpoints; not to be written to."""
    directory = tmp_path_factory.mktemp("validated")
    (directory / "text.txt").write_text(small_text(), encoding="utf-8")
    commands = Commands(directory)
    keep_all = ("--steps", "60", "--workers", "1", "--keep-checkpoints", "0")
    train(commands, directory / "text.txt", "run", *keep_all)
    commands.close()
    return directory / "run"


@pytest.fixture
def validated(manychar: Commands, validated_run: Path) -> RunDirectory:
    """A copy of validated_run that is the test's own."""
    return open_run(copytree(validated_run, manychar.directory / "run"))


def append_losses(run: RunDirectory, losses: dict[int, float]) -> None:
    """Append results to a run's log, as if its checkpoints had them."""
    with validation_log(run) as log:
        for step, nats in losses.items():
            sha256 = read_checkpoint(checkpoint_path(run.checkpoints, step)).sha256
            append_result(log, step, sha256, nats)


def losses_of(manychar: Commands, run: str) -> dict[int, float]:
    return read_validation_losses(open_run(manychar.directory / run))


def test_a_stopped_run_does_not_offer_the_untrained_weights_as_the_best(
    manychar: Commands, text: Path
) -> None:
    """Its last checkpoint is not validated: nobody waits for that at a stop."""
    few = (*VALIDATED, "--checkpoint-every", "1000000", "--steps", "0", "--log-every", "0.1")
    running = manychar.start("train", str(text), "--run-dir", "run", *few)
    running.wait_for(r"validation \S+\s+\(step 0\)")
    running.interrupt()
    done = running.end()
    assert done.code == 0
    assert done.last_line == "sample from it: manychar sample run"


@pytest.mark.long
def test_every_checkpoint_is_validated_and_the_best_is_kept(manychar: Commands, text: Path) -> None:
    said = train(manychar, text, "run", "--steps", "110", "--workers", "2")
    validation_losses = losses_of(manychar, "run")
    assert sorted(validation_losses) == [0, 20, 40, 60, 80, 100, 110]
    run = open_run(manychar.directory / "run")
    best = min(validation_losses, key=validation_losses.__getitem__)
    assert best_checkpoint(run, validation_losses) == best
    nats = validation_losses[best]
    assert f"the best checkpoint is that of step {best}: {nats:#.5g} nats" in said
    assert re.search(r"validation [\d.]+ ", said)
    path = f"run/checkpoints/{checkpoint_path(run.checkpoints, best).name}"
    assert said.splitlines()[-1].endswith(f"sample {path}")
    # It is the loss that `evaluate` finds, and the validation text is not trained on.
    for source in ("run", path):
        validation_ids = manychar.directory / "validation.txt"
        whole = text.read_text(encoding="utf-8")
        validation_ids.write_text(whole[len(whole) - int(len(whole) * 0.1) :], encoding="utf-8")
        found = manychar.run("evaluate", source, str(validation_ids), "--json")
        step = 110 if source == "run" else best
        assert json.loads(found.out)["nats"] == pytest.approx(validation_losses[step], rel=1e-12)
    again = json.loads(manychar.run("evaluate", "run", "--json").out)
    assert again["nats"] == validation_losses[110]
    assert manychar.run("verify", "run").code == 0


@pytest.mark.long
def test_validation_losses_are_the_same_however_many_workers(
    manychar: Commands, text: Path
) -> None:
    train(manychar, text, "one", "--steps", "60", "--workers", "1")
    train(manychar, text, "four", "--steps", "60", "--workers", "4")
    assert losses_of(manychar, "one") == losses_of(manychar, "four")


STOPS = ("--steps", "5000", "--stop-when-no-better", "2", "--learning-rate", "2.0")


HANGS_ONCE = """
import pathlib, signal, sys, time
from manychar.processes.numerics_pinning import pin
pin("portable")
from manychar.fleet import validation_process
run = pathlib.Path(sys.argv[2])
hung, loss_of = run.with_name("hung"), validation_process.loss_of
def replaced(parameters, ids, progress):
    progress()
    if not hung.exists():
        hung.touch()
        signal.pause()  # until it is killed
    for _ in range(10):
        time.sleep(0.5)
        progress()
    return loss_of(parameters, ids, progress)
validation_process.loss_of = replaced
validation_process.validate(run)
"""


def where_it_ends(validation_losses: dict[int, float]) -> int:
    """Return the checkpoint after the one that the decision was made on, by the rule."""
    best = 0
    for step in sorted(validation_losses):
        best = step if validation_losses[step] < validation_losses[best] else best
        if step - best >= 2 * 20:
            return step + 20
    raise AssertionError("it never stops")


def test_it_stops_when_it_gets_no_better(manychar: Commands, text: Path) -> None:
    said = train(manychar, text, "run", *STOPS)
    validation_losses = losses_of(manychar, "run")
    assert max(validation_losses) == where_it_ends(validation_losses)
    assert "no better for 2 checkpoints up to step" in said
    newest = list_checkpoints(open_run(manychar.directory / "run").checkpoints)[-1][0]
    assert newest == max(validation_losses)
    assert read_metrics(manychar.directory / "run")[-1]["step"] == newest
    assert manychar.run("runs", ".").out.endswith(" nats a character  stopped early\n")
    # It is over, and says so; the line that it ends with goes on.
    refused = f"the run in run was stopped early at step {newest}; give --stop-when-no-better 0 to"
    for command, steps in (("train", ()), ("train", ("--steps", "6000")), ("server", ())):
        done = manychar.run(command, "--resume", "run", *steps)
        assert (done.code, done.err) == (2, f"manychar: {refused} go on with it\n")
    with pytest.raises(
        UserError, match=r"stopped early at .*; give stop_when_no_better=0 to go on"
    ):
        Run(manychar.directory / "run").resume(steps=6000)
    again = manychar.run("train", "--or-resume", "--run-dir", "run")
    assert again.code == 0
    assert "no better for 2 checkpoints up to step" in again.err
    assert list_checkpoints(open_run(manychar.directory / "run").checkpoints)[-1][0] == newest
    for ended in (said, again.err):
        assert "train --resume run --stop-when-no-better 0\n" in ended
    more = ("--stop-when-no-better", "0", "--steps", str(newest + 10))
    done = manychar.run("train", "--resume", "run", *more)
    assert done.code == 0
    assert "train --resume run --steps N\n" in done.err


@pytest.mark.long
@pytest.mark.parametrize("wrong", ["damaged", "to be resumed before"])
def test_a_run_that_stopped_early_does_its_last_steps_again_where_they_are_lost(
    manychar: Commands, text: Path, wrong: str
) -> None:
    train(manychar, text, "run", *STOPS)
    run = open_run(manychar.directory / "run")
    newest, path = list_checkpoints(run.checkpoints)[-1]
    if wrong == "damaged":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        run.with_facts(resume_before=newest).write_config()
    done = manychar.run("train", "--resume", "run")
    assert done.code == 0, done.err
    assert f"resuming from step {newest - 20}" in done.err
    assert list_checkpoints(run.checkpoints)[-1][0] == newest


@pytest.mark.long
def test_where_it_ends_does_not_depend_on_a_crash(manychar: Commands, text: Path) -> None:
    train(manychar, text, "calm", *STOPS)
    running = manychar.start("train", str(text), "--run-dir", "run", *VALIDATED, *STOPS)
    run = manychar.directory / "run"
    until((run / "config.json").exists, running.described)
    until(lambda: len(read_validation_losses(open_run(run))) > 1, running.described)
    running.send(signal.SIGKILL)
    running.end()
    manychar.expect_nobody()
    assert manychar.run("train", "--or-resume", "--run-dir", "run").code == 0
    calm, crashed = losses_of(manychar, "calm"), losses_of(manychar, "run")
    assert calm == crashed
    end = max(calm)
    state = read_checkpoint(list_checkpoints(run / "checkpoints")[-1][1]).state
    assert (state.step, bits_of(state)) == (end, bits_alone(text, run, end)[end])


@pytest.mark.long
def test_a_validation_loss_that_a_crash_at_the_end_took_comes_on_resume(
    manychar: Commands, text: Path
) -> None:
    train(manychar, text, "run", *STOPS)
    calm, validation_losses = (
        losses_of(manychar, "run"),
        manychar.directory / "run" / VALIDATION_NAME,
    )
    lines = validation_losses.read_text().splitlines(keepends=True)
    validation_losses.write_text("".join(lines[:-1]))
    assert losses_of(manychar, "run") != calm
    assert manychar.run("train", "--resume", "run").code == 0
    assert losses_of(manychar, "run") == calm
    assert max(calm) == list_checkpoints(manychar.directory / "run" / "checkpoints")[-1][0]


@pytest.mark.long
def test_a_validation_process_that_is_killed_is_started_again(
    manychar: Commands, text: Path
) -> None:
    running = manychar.start(
        *("train", str(text), "--run-dir", "run", *VALIDATED, "--steps", "0", "--workers", "1")
    )
    pid = manychar.find("validate")
    until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 19, "the lowest priority")
    group = Path(f"/proc/{pid}/autogroup")
    until(lambda: not group.exists() or "nice 19" in group.read_text(), "the last of its session")
    os.kill(pid, signal.SIGKILL)
    running.wait_for("the validation process ended by SIGKILL: starting it again")
    run = manychar.directory / "run"
    before = len(read_validation_losses(open_run(run)))
    until(lambda: len(read_validation_losses(open_run(run))) > before + 1, running.described)
    running.interrupt()
    done = running.end()
    assert done.code == 0, done.err


@pytest.mark.long
def test_a_run_that_is_stopped_ends_at_once_while_a_checkpoint_is_validated(
    manychar: Commands, tmp_path: Path
) -> None:
    large = tmp_path / "large.txt"
    large.write_text("the cat sat on a mat and the dog ran home\n" * 500_000, encoding="utf-8")
    flags = (*SMALL, "--validation", "0.9", "--steps", "0", "--run-dir", "run", *ONE_WORKER)
    running = manychar.start("train", str(large), *flags)
    running.wait_for("worker-1 has joined")
    manychar.find("validate")
    running.send(signal.SIGTERM)
    done = running.end()
    assert done.code == 75, done.err
    assert "did not stop within" not in done.err
    manychar.expect_nobody()


@pytest.mark.long
def test_the_best_checkpoint_is_kept_however_old_it_is(
    manychar: Commands, validated: RunDirectory
) -> None:
    (validated.path / VALIDATION_NAME).unlink()
    append_losses(validated, {0: 4.0, 20: 3.0, 40: 0.001, 60: 3.0})
    kept = ("--keep-checkpoints", "1")
    again = manychar.run("train", "--resume", "run", "--steps", "160", *kept)
    assert again.code == 0, again.err
    saved = [step for step, _ in list_checkpoints(validated.checkpoints)]
    assert {0, 40, 160} <= set(saved)
    assert 20 not in saved
    assert again.last_line.endswith("sample run/checkpoints/step-000000040.safetensors")


def test_the_best_checkpoint_is_the_best_of_what_is_left(validated: RunDirectory) -> None:
    losses = {0: 4.0, 20: 0.1, 40: 0.5, 60: math.inf}
    assert best_checkpoint(validated, losses) == 20
    checkpoint_path(validated.checkpoints, 20).unlink()
    assert best_checkpoint(validated, losses) == 40
    (validated.path / VALIDATION_NAME).unlink()
    append_losses(validated, {0: 4.0, 40: 0.5, 60: 0.1})
    _, losses = resume_validation(validated, 40)
    assert best_checkpoint(validated, losses) == 40


class Asked:
    """The server's side of a validation process, and what it was told."""

    def __init__(self, run: RunDirectory, loop: EventLoop) -> None:
        self.loop = loop
        self.results: list[tuple[int, str]] = []
        self.failures: list[str] = []
        self.process = ValidationProcess(
            run,
            loop,
            on_result=lambda step, fault: self.results.append((step, fault)),
            on_failure=self.failures.append,
        )

    def ask(self, step: int) -> tuple[int, str]:
        before = len(self.results)
        self.process.ask(step)
        self.turn_until(lambda: len(self.results) > before)
        return self.results[-1]

    def turn_until(self, true: Callable[[], object]) -> None:
        while not true():
            self.loop.turn()


@pytest.fixture
def asked(validated: RunDirectory) -> Iterator[Asked]:
    """A validation process of a run of 60 steps."""
    with EventLoop() as loop:
        asked = Asked(validated, loop)
        try:
            yield asked
        finally:
            asked.process.close()


@pytest.mark.long
def test_a_validation_process_that_hangs_is_started_again(
    validated: RunDirectory,
    asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader = LogReader(validated.path / VALIDATION_NAME)
    first = read_validation_losses(validated, reader)[20]
    assert asked.ask(20) == (20, "")
    assert read_validation_losses(validated, reader) == {20: first}
    assert asked.process.slot.process is not None
    os.kill(asked.process.slot.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(validation_process, "SILENT_FOR", 3.0)
    assert asked.ask(20) == (20, "")
    assert read_validation_losses(validated, reader) == {20: first}
    assert "has sent no sign of life while validating the checkpoint of step 20" in caplog.text
    assert "the validation process ended by SIGKILL: starting it again" in caplog.text
    assert not asked.failures


@pytest.mark.long
def test_a_validation_that_hangs_is_noticed_and_one_that_is_slow_goes_on(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child_process, "PROGRAM", (sys.executable, "-c", HANGS_ONCE))
    monkeypatch.setattr(validation_process, "SILENT_FOR", 4.5)
    assert asked.ask(20) == (20, "")
    assert "has sent no sign of life while validating the checkpoint of step 20" in caplog.text
    assert not asked.failures


def test_a_checkpoint_over_which_its_process_crashes_again_and_again_ends_validation(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(child_process, "PROGRAM", (sys.executable, "-c", "raise SystemExit(70)"))
    asked.process.ask(20)
    asked.process.ask(20)
    asked.turn_until(lambda: asked.failures)
    failure = "its process ended 4 times while validating the checkpoint of step 20"
    assert asked.failures == [failure]
    assert not asked.results
    asked.process.ask(20)  # nothing is asked any more
    assert asked.process.slot.is_empty


@pytest.mark.parametrize("idle", [3, 5])
def test_ends_of_its_process_count_only_while_a_checkpoint_waits(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, idle: int
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor, "SETTLED_AFTER", 0.0)  # no end is too soon after the start
    answers_once = "import json; print(json.dumps([int(input()), '']))"
    monkeypatch.setattr(child_process, "PROGRAM", (sys.executable, "-c", answers_once))
    assert asked.ask(20) == (20, "")
    monkeypatch.setattr(child_process, "PROGRAM", (sys.executable, "-c", "raise SystemExit(70)"))
    restarts = "starting it again"
    asked.turn_until(lambda: caplog.text.count(restarts) == idle)
    asked.process.ask(20)
    enough = idle + 2 * validation_process.TRIES
    asked.turn_until(lambda: asked.failures or caplog.text.count(restarts) == enough)
    failure = "its process ended 4 times while validating the checkpoint of step 20"
    assert asked.failures == [failure]
    assert caplog.text.count(restarts) == idle + validation_process.TRIES - 1


def test_a_checkpoint_that_is_not_there_has_no_validation_loss(asked: Asked) -> None:
    step, fault = asked.ask(7)
    assert step == 7
    assert "step-000000007.safetensors" in fault


@pytest.mark.long
def test_a_torn_line_is_validated_again(manychar: Commands, validated: RunDirectory) -> None:
    path = validated.path / VALIDATION_NAME
    whole = path.read_text()
    path.write_text(whole[: whole.index('{"step":40') + 20])
    done = manychar.run("train", "--resume", "run", "--steps", "80")
    assert done.code == 0, done.err
    validation_losses = losses_of(manychar, "run")
    assert sorted(validation_losses) == [0, 20, 40, 60, 80]


@pytest.mark.long
def test_a_result_of_another_checkpoint_is_passed_over(validated: RunDirectory) -> None:
    before = read_validation_losses(validated)
    with validation_log(validated) as log:
        append_result(log, 20, "ab" * 32, 0.125)
    assert read_validation_losses(validated) == before
    checkpoint_path(validated.checkpoints, 20).unlink()  # pruned: nothing says that it was another
    assert read_validation_losses(validated)[20] == 0.125


def test_results_are_cut_off_after_the_checkpoint(validated: RunDirectory) -> None:
    whole = read_validation_losses(validated)
    append_losses(validated, {20: math.inf})
    reader, losses = resume_validation(validated, 40)
    assert losses == {step: whole[step] for step in (0, 20, 40)}
    append_losses(validated, {40: math.inf})
    assert read_validation_losses(validated, reader) == {40: math.inf}


def test_one_process_at_a_time_appends(
    validated: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_validation_log, "LOCKED_WITHIN", 0.1)
    with validation_log(validated), pytest.raises(UserError, match="another process appends to it"):
        resume_validation(validated, 20)


def test_an_altered_corpus_is_not_validated_with(
    manychar: Commands, validated: RunDirectory
) -> None:
    corpus = validated.path / "corpus.bin"
    os.truncate(corpus, corpus.stat().st_size // 2)
    done = manychar.run("evaluate", "run")
    assert (done.code, done.out) == (2, "")
    assert "corpus.bin: altered" in done.err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--stop-when-no-better", "3"], "it needs a --validation above 0"),
        (["--validation", "0.0001"], "at least 2 are needed"),
        (["--validation", "1.0"], "--validation is 1.0"),
        (
            ["--validation", "0.1", "--stop-when-no-better", "3", "--checkpoint-every", "0"],
            "a --checkpoint-every above 0",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused(
    manychar: Commands, text: Path, flags: list[str], complaint: str
) -> None:
    done = manychar.run("train", str(text), *SMALL, *flags)
    assert done.code == 2
    assert complaint in done.last_line


@pytest.mark.long
def test_characters_that_the_model_does_not_know(manychar: Commands, trained: Path) -> None:
    strange = manychar.directory / "strange.txt"
    strange.write_text("the cät sat on ☃", encoding="utf-8")
    refused = manychar.run("evaluate", "run", str(strange))
    assert refused.code == 2
    unknown = f"the model does not know 2 characters of {strange}"
    assert f"{unknown} (--unknown=skip leaves them out): 'ä' (U+00E4), '☃' (U+2603)" in refused.err
    skipped = manychar.run("evaluate", "run", str(strange), "--unknown", "skip")
    assert skipped.code == 0
    assert f"{unknown}: 'ä' (U+00E4), '☃' (U+2603); skipped" in skipped.err
    assert skipped.out.startswith("13 characters: ")
    given = manychar.run("evaluate", "run", "-", given=b"the cat")
    assert given.out.startswith("6 characters: ")
    assert manychar.run("evaluate", "run").code == 2, "it holds nothing out"


def test_a_text_without_a_loss_is_named(manychar: Commands, trained: Path) -> None:
    (manychar.directory / "one.txt").write_text("t")
    (manychar.directory / "empty.txt").touch()
    done = manychar.run("evaluate", "run", "one.txt")
    assert (done.code, done.err) == (2, "manychar: one.txt: 1 character: a loss needs at least 2\n")
    done = manychar.run("evaluate", "run", "empty.txt", "-")
    assert done.err == (
        "manychar: empty.txt, standard input: 0 characters: a loss needs at least 2\n"
    )
