"""The run directory: made whole or not at all, held by one server, with a durable term."""

import dataclasses
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import start
from manychar.processes.errors import UserError
from manychar.protocol.run_operation import Operation
from manychar.storage import atomic_files, corpus_file, run_directory
from manychar.storage.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from manychar.storage.corpus_file import Corpus
from manychar.storage.journal import JOURNAL_NAME, AppliedStep
from manychar.storage.recovery import recover
from manychar.storage.run_directory import (
    RunDirectory,
    create_run,
    locked,
    open_run,
    raise_term,
    removed_if_refused,
)
from tests.single_process import bits_of
from tests.storage.given_texts import corpus_in, corpus_of
from tests.texts import small_text


def a_corpus() -> Corpus:
    return corpus_of(small_text())


def a_definition(hidden: int = 4) -> Definition:
    return Definition(
        corpus_sha256=a_corpus().sha256, hidden=hidden, seq_length=5, shards=2, streams=2
    )


def made(path: Path, **operation: int) -> RunDirectory:
    values: dict[str, Any] = {"steps": 9, "workers": 1, "compute": False} | operation
    return create_run(path, a_definition(), a_corpus(), Operation(**values))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A new run directory."""
    return made(tmp_path / "run")


def refused(code: int = 2) -> "pytest.RaisesExc[UserError]":
    return pytest.raises(UserError, check=lambda e: e.code == code and "\n" not in str(e))


def serve_a_little(run: RunDirectory, *steps: AppliedStep) -> None:
    """Write what a server writes before it serves, and the records of some steps."""
    with locked(run):
        resumed = recover(run, raise_term(run))
        for step in steps:
            resumed.journal.append(step)
        resumed.journal.close()
        resumed.metrics.close()
        run.write_config()


class TestMaking:
    def test_puts_everything_there(self, tmp_path: Path) -> None:
        directory = made(tmp_path / "deep" / "down" / "run", steps=77)
        assert open_run(directory.path) == directory
        config = json.loads((directory.path / "config.json").read_text())
        assert config.keys() == {*("format", "run", "definition", "operation", "facts", "versions")}
        definition = Definition.from_mapping(config["definition"])
        assert definition == a_definition()
        identity, nonce = config["run"].split("-")
        assert identity == hashlib.sha256(definition.to_json().encode()).hexdigest()[:12]
        assert len(nonce) == 8
        assert config["operation"]["steps"] == 77
        assert config["versions"].keys() >= {"python", "manychar", "numpy", "pyzmq"}
        assert not config["definition"].keys() & config["operation"].keys()
        vocabulary, streams = directory.corpus()
        assert "".join(vocabulary[i] for i in streams.ids) == small_text()
        (step, path), *more = list_checkpoints(directory.checkpoints)
        assert (step, more) == (0, [])
        checkpoint = read_checkpoint(path)
        assert checkpoint.definition == definition
        assert bits_of(checkpoint.state) == bits_of(start(definition, len(vocabulary)))

    def test_gives_each_run_a_name_of_its_own(self, tmp_path: Path) -> None:
        one, two = made(tmp_path / "one"), made(tmp_path / "two")
        assert one.run_id != two.run_id
        assert one.run_id[:12] == two.run_id[:12]
        other = create_run(
            tmp_path / "three",
            a_definition(5),
            a_corpus(),
            Operation(steps=9, workers=1, compute=False),
        )
        assert other.run_id[:12] != one.run_id[:12]

    def test_says_what_is_there_in_place_of_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(UserError, match="file: not a directory; choose another --run-dir"):
            made(tmp_path / "file")
        with pytest.raises(UserError, match="link: a link to nowhere, which is not there"):
            made(tmp_path / "link")

    def test_fills_an_empty_directory_in_place(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir(mode=0o2750)
        (tmp_path / "run").chmod(0o2750)
        before = (tmp_path / "run").stat()
        assert open_run(made(tmp_path / "run").path).definition == a_definition()
        after = (tmp_path / "run").stat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)

    @pytest.mark.parametrize("mode", [0o700, 0o2750, 0o711, 0o755])
    def test_no_file_is_more_readable_than_its_directory(self, tmp_path: Path, mode: int) -> None:
        """Also what a server and the processes that it starts write."""
        path = tmp_path / "run"
        path.mkdir()
        path.chmod(mode)
        before = os.umask(0o022)
        try:
            run = made(path)
            assert os.umask(0o022) == 0o022
            serve_a_little(run)
            with locked(run):
                command = [sys.executable, "-c", "open('a child was here', 'w')"]
                subprocess.run(command, cwd=path, check=True)
            assert os.umask(0o022) == 0o022
        finally:
            os.umask(before)
        found = [path, *path.rglob("*")]
        assert {each.name for each in found} >= {"a child was here", "term", "journal.jsonl"}
        for each in found:
            assert not each.stat().st_mode & 0o066 & ~mode, each

    def test_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "volume").mkdir()
        (tmp_path / "volume" / "lost+found").mkdir(mode=0o700)  # a new file system has it
        (tmp_path / "run").symlink_to("volume")
        run = made(tmp_path / "run")
        assert run.path.is_symlink()
        assert open_run(tmp_path / "volume").run_id == run.run_id

    def test_in_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert open_run(made(Path()).path).run_id == open_run(tmp_path).run_id

    def test_below_a_directory_that_nobody_may_write_to(self, tmp_path: Path) -> None:
        (tmp_path / "kept" / "run").mkdir(parents=True)
        (tmp_path / "kept").chmod(0o555)
        run = made(tmp_path / "kept" / "run")
        (tmp_path / "kept").chmod(0o755)
        assert open_run(run.path).run_id == run.run_id

    def test_files_that_are_written_again_keep_mode_and_link(self, run: RunDirectory) -> None:
        (run.path / "config.json").chmod(0o600)
        (run.path / "config.json").rename(run.path.parent / "elsewhere")
        (run.path / "config.json").symlink_to("../elsewhere")
        run.with_facts(banned={"worker-1": "it was wrong"}).write_config()
        assert (run.path / "config.json").is_symlink()
        assert stat.S_IMODE((run.path.parent / "elsewhere").stat().st_mode) == 0o600
        assert open_run(run.path).facts.banned

    def test_an_empty_directory_is_empty_after_a_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise OSError(28, "No space left")

        (tmp_path / "run").mkdir()
        monkeypatch.setattr(atomic_files, "replace_file", fails)
        with refused(3):
            made(tmp_path / "run")
        assert not list((tmp_path / "run").iterdir())

    def test_finishes_what_a_process_that_was_killed_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = made(tmp_path / "run").path
        (path / "config.json").unlink()
        (path / run_directory.UNFINISHED_NAME).touch()
        with refused():
            open_run(path)
        assert open_run(made(path).path).definition == a_definition()
        assert not (path / run_directory.UNFINISHED_NAME).exists()

    def test_one_process_at_a_time_makes_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        with (tmp_path / "run" / run_directory.UNFINISHED_NAME).open("a") as mark:
            atomic_files.lock_file(mark, within=0)
            with pytest.raises(UserError, match="another process makes a run there"):
                made(tmp_path / "run")

    def test_goes_on_where_its_mark_was_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark = tmp_path / "run" / run_directory.UNFINISHED_NAME
        write_corpus = corpus_file.write_corpus

        def write_and_remove(path: Path, corpus: Corpus) -> None:
            write_corpus(path, corpus)
            mark.unlink()

        monkeypatch.setattr(corpus_file, "write_corpus", write_and_remove)
        assert open_run(made(tmp_path / "run").path).definition == a_definition()

    def test_refuses_a_directory_with_something_in_it(self, run: RunDirectory) -> None:
        before = sorted(run.path.rglob("*"))
        with refused():
            made(run.path)
        assert sorted(run.path.rglob("*")) == before
        assert list(run.path.parent.iterdir()) == [run.path]

    def test_leaves_nothing_of_a_text_that_changed_while_it_was_read(self, tmp_path: Path) -> None:
        text = tmp_path / "text"
        text.write_text(small_text())
        corpus = corpus_in(text)
        text.write_text(small_text() + "more")
        with refused():
            create_run(
                tmp_path / "deep" / "run",
                a_definition(),
                corpus,
                Operation(steps=9, workers=1, compute=False),
            )
        assert list(tmp_path.iterdir()) == [text]

    @pytest.mark.parametrize(
        ("module", "failing"),
        [
            (corpus_file, "write_corpus"),
            (run_directory, "write_checkpoint"),
            (atomic_files, "replace_file"),
        ],
    )
    @pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
    def test_is_all_or_nothing(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        module: ModuleType,
        failing: str,
        error: BaseException,
    ) -> None:
        def fails(*_: object) -> None:
            raise error

        monkeypatch.setattr(module, failing, fails)
        expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            made(tmp_path / "deep" / "run")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("nth", range(6))
    def test_is_all_or_nothing_at_any_fsync(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
    ) -> None:
        fsync, calls = os.fsync, 0

        def fails(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls > nth:
                raise OSError(5, "Input/output error")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fails)
        with refused(3):
            made(tmp_path / "deep" / "run")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("there", [False, True])
    def test_what_follows_is_refused_and_nothing_is_left(
        self, tmp_path: Path, *, there: bool
    ) -> None:
        if there:
            (tmp_path / "deep").mkdir()
            (tmp_path / "deep" / "run").mkdir()
        before = sorted(tmp_path.rglob("*"))
        run = made(tmp_path / "deep" / "run")
        serve_a_little(run)
        with pytest.raises(UserError, match="in use"), removed_if_refused(run):
            raise UserError("the port is in use")
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_run_that_has_begun_was_there_or_is_served_stays(self, tmp_path: Path) -> None:
        begun, served, resumed = (made(tmp_path / name) for name in ("begun", "served", "resumed"))
        serve_a_little(begun, AppliedStep(1, 1, 1.0, "0" * 8))
        with pytest.raises(UserError), removed_if_refused(begun):
            raise UserError("it failed")
        with pytest.raises(UserError), removed_if_refused(open_run(resumed.path)):
            raise UserError("it failed")
        with pytest.raises(UserError), locked(served), removed_if_refused(served):
            raise UserError("it failed")
        with pytest.raises(KeyboardInterrupt), removed_if_refused(resumed):
            raise KeyboardInterrupt
        assert [open_run(each.path) for each in (begun, served, resumed)]

    def test_an_unreadable_journal_does_not_replace_the_error(self, tmp_path: Path) -> None:
        run = made(tmp_path / "run")
        (run.path / JOURNAL_NAME).mkdir()
        for each in (open_run(run.path), run):  # one that is resumed, and one that was just made
            with pytest.raises(UserError, match="in use"), removed_if_refused(each):
                raise UserError("the port is in use")
            assert open_run(run.path) == run

    def test_in_a_place_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("dear")
        with refused():
            made(tmp_path / "file" / "run")
        with refused():
            made(tmp_path / "file")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_run_that_goes_on_is_carried_out_otherwise(self, run: RunDirectory) -> None:
        dataclasses.replace(
            run, operation=Operation(workers=1, compute=False, steps=5)
        ).write_config()
        again = open_run(run.path)
        assert again.operation == Operation(workers=1, compute=False, steps=5)
        assert (again.run_id, again.definition) == (run.run_id, run.definition)


class TestHolding:
    def test_one_server_at_a_time(self, run: RunDirectory) -> None:
        with locked(run):
            with refused(), locked(run):
                pytest.fail("two hold it")
            program = (
                "import sys; from pathlib import Path\n"
                "from manychar.storage.run_directory import locked, open_run\n"
                "from manychar.processes.errors import UserError\n"
                "try:\n"
                "    with locked(open_run(Path(sys.argv[1]))): print('held')\n"
                "except UserError as error: print(error)\n"
            )
            done = subprocess.run(
                [sys.executable, "-c", program, str(run.path)],
                capture_output=True,
                text=True,
                check=True,
            )
            assert "another server is running on it" in done.stdout
        with locked(run):
            pass

    def test_a_refused_one_changes_nothing(self, run: RunDirectory) -> None:
        with locked(run):
            temporary = run.checkpoints / ".step-000000007.safetensors.1.tmp"
            temporary.touch()
            with refused(), locked(run):
                pytest.fail("two hold it")
            assert temporary.exists()

    def test_what_a_killed_one_left_is_removed(self, run: RunDirectory) -> None:
        left = [run.path / ".config.json.1.tmp", run.checkpoints / ".step-7.safetensors.1.tmp"]
        for path in left:
            path.touch()
        with locked(run):
            assert not any(path.exists() for path in left)

    @pytest.mark.parametrize("name", ["corpus.bin", "vocabulary.json"])
    def test_the_text_is_held_against_its_hash(self, run: RunDirectory, name: str) -> None:
        data = bytearray((run.path / name).read_bytes())
        data[-7] ^= 1
        (run.path / name).write_bytes(data)
        with refused(), locked(run):
            pytest.fail("another text was taken")

    def test_a_corpus_cut_short(self, run: RunDirectory) -> None:
        path = run.path / "corpus.bin"
        path.write_bytes(path.read_bytes()[:-1])
        with refused(), locked(run):
            pytest.fail("another text was taken")


class TestTerm:
    def test_rises_by_one(self, run: RunDirectory) -> None:
        assert [raise_term(run) for _ in range(3)] == [1, 2, 3]
        assert (run.path / "term").read_text() == "3\n"

    def test_is_durable_before_it_is_told(
        self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        fsync = os.fsync

        def note(descriptor: int) -> None:
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        if not Path("/proc/self/fd").exists():
            pytest.skip("no /proc to ask which file a descriptor is")
        monkeypatch.setattr(os, "fsync", note)
        raise_term(run)
        file, directory = synced
        assert Path(file).name.startswith(".term.")
        assert Path(directory) == run.path.resolve()

    def test_that_cannot_be_written(
        self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(_: int) -> None:
            raise OSError(28, "No space left on device")

        assert raise_term(run) == 1
        monkeypatch.setattr(os, "fsync", fails)
        with refused(3):
            raise_term(run)
        monkeypatch.undo()
        assert raise_term(run) == 2
        assert not list(run.path.glob(".*"))

    @pytest.mark.parametrize(
        "content", [b"", b"one", b"1.5", b"\xff", b"-3", b"18446744073709551615", b"9" * 10_000]
    )
    def test_that_is_damaged(self, run: RunDirectory, content: bytes) -> None:
        (run.path / "term").write_bytes(content)
        with refused():
            raise_term(run)


class TestOpening:
    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"run": "x", "definition": {}}']
    )
    def test_a_damaged_config(self, run: RunDirectory, content: bytes) -> None:
        (run.path / "config.json").write_bytes(content)
        with refused():
            open_run(run.path)

    def test_what_is_none(self, tmp_path: Path) -> None:
        with refused():
            open_run(tmp_path)
        with refused():
            open_run(tmp_path / "nowhere")

    @pytest.mark.parametrize(("name", "value"), [("hidden", 0), ("hidden", "8"), ("dtype", "f2")])
    def test_a_definition_that_no_run_can_have(
        self, run: RunDirectory, name: str, value: object
    ) -> None:
        config = json.loads((run.path / "config.json").read_text())
        config["definition"][name] = value
        (run.path / "config.json").write_text(json.dumps(config))
        with refused():
            open_run(run.path)

    def test_of_another_format_is_refused_by_name(self, run: RunDirectory) -> None:
        path = run.path / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({"format": 5, "run": "of another shape"}))
        with pytest.raises(UserError, match=r"config.json: format 5: this version reads format 4$"):
            open_run(run.path)
        path.write_text(json.dumps({"format": 3}))
        with pytest.raises(UserError, match=r"format 3: .*; install manychar 0\.3\.0 to read it"):
            open_run(run.path)
        config["definition"]["format"] = config.pop("format") - 3  # where format 1 has it
        path.write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"format 1: .*; install manychar 0\.1\.0 to read it"):
            open_run(run.path)

    def test_a_definition_that_is_not_the_one_of_its_name(self, run: RunDirectory) -> None:
        config = json.loads((run.path / "config.json").read_text())
        config["definition"]["learning_rate"] = 0.2
        (run.path / "config.json").write_text(json.dumps(config))
        with refused():
            open_run(run.path)

    def test_an_operation_of_no_version(self, run: RunDirectory) -> None:
        config = json.loads((run.path / "config.json").read_text())
        config["operation"]["colour"] = "blue"
        (run.path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"config\.json: damaged or altered: 'colour' is unkn"):
            open_run(run.path)

    @pytest.mark.parametrize("content", [b"", b"{", b"1", b"[1]", b"null"])
    def test_a_damaged_vocabulary(self, run: RunDirectory, content: bytes) -> None:
        (run.path / "vocabulary.json").write_bytes(content)
        with refused():
            run.corpus()

    def test_an_empty_corpus(self, run: RunDirectory) -> None:
        (run.path / "corpus.bin").write_bytes(b"")
        with refused():
            run.corpus()

    def test_the_newest_whole_checkpoint(self, run: RunDirectory) -> None:
        (run.checkpoints / "step-000000009.safetensors").write_bytes(b"torn")
        checkpoint, damaged = run.newest_checkpoint()
        assert checkpoint.state.step == 0
        assert [path.name for path in damaged] == ["step-000000009.safetensors"]
        (run.checkpoints / "step-000000000.safetensors").unlink()
        advice = "; put one of this run back there, or start a new run$"
        with pytest.raises(UserError, match=f"no whole checkpoint, the newest: .*{advice}"):
            run.newest_checkpoint()
        (run.checkpoints / "step-000000009.safetensors").unlink()
        with pytest.raises(UserError, match=f"/checkpoints: no checkpoint{advice}"):
            run.newest_checkpoint()


def write_at(run: RunDirectory, step: int) -> None:
    """Write a checkpoint of this step, with the first weights."""
    vocabulary, _ = run.corpus()
    state = dataclasses.replace(start(run.definition, len(vocabulary)), step=step)
    write_checkpoint(checkpoint_path(run.checkpoints, step), run.definition, vocabulary, state)


@pytest.mark.parametrize("pruned", [1, 3])
def test_a_checkpoint_that_is_pruned_before_it_is_read_gives_way_to_a_newer_one(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, pruned: int
) -> None:
    """The live run keeps one checkpoint, and writes the next one between the list and the read."""
    write_at(run, 10)

    def prune_and_read(path: Path) -> Checkpoint:
        step = list_checkpoints(run.checkpoints)[-1][0]
        if step < 10 + 10 * pruned:
            write_at(run, step + 10)
            checkpoint_path(run.checkpoints, step).unlink()
        return read_checkpoint(path)

    monkeypatch.setattr(run_directory, "read_checkpoint", prune_and_read)
    checkpoint, damaged = run.newest_checkpoint()
    assert (checkpoint.state.step, damaged) == (10 + 10 * pruned, {})


def test_a_link_that_leads_nowhere_is_a_damaged_checkpoint(run: RunDirectory) -> None:
    checkpoint_path(run.checkpoints, 10).symlink_to("nowhere")
    checkpoint, damaged = run.newest_checkpoint()
    assert (checkpoint.state.step, len(damaged)) == (0, 1)


def test_the_corpus_is_mapped_and_not_read(run: RunDirectory) -> None:
    _, ids = corpus_file.map_corpus(run.path)
    assert isinstance(ids.base, np.memmap)
    assert not ids.flags.writeable
