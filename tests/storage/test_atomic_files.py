"""Files that are replaced: what of the old one stays; file systems that cannot do everything."""

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from manychar.network import keys
from manychar.processes.errors import UserError
from manychar.storage.atomic_files import WARNED_VARIABLE, lock_file, replace_file, write_output
from manychar.storage.run_directory import locked
from tests.commands import SMALL, Commands
from tests.storage.test_run_directory import made

NO_DIRECTORY_SYNC = """
import errno, os, stat
fsync = os.fsync
def files_only(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    fsync(descriptor)
os.fsync = files_only
"""


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_a_file_of_minus_o_keeps_mode_owner_and_link(tmp_path: Path, mode: int) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(mode)
    if os.geteuid() == 0:
        os.chown(tmp_path / "old", 65532, 65532)
    before = (tmp_path / "old").stat()
    (tmp_path / "link").symlink_to("old")
    write_output(tmp_path / "link", b"new")
    after = (tmp_path / "old").stat()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        *(before.st_mode, before.st_uid, before.st_gid),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "old"]


def test_a_file_that_is_replaced_is_at_no_time_more_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch(mode=0o600)
    (tmp_path / "file").chmod(0o600)
    fsync, modes = os.fsync, []

    def looks(descriptor: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", looks)
    replace_file(tmp_path / "file", b"new")
    assert modes[0] == 0o600


def test_who_may_not_give_a_file_away_replaces_it_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "chown", refuses)
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def failing(number: int, *, directories: bool) -> Callable[[int], None]:
    fsync = os.fsync

    def fails(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) is directories:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    return fails


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the variable that says that there was a warning go with the test."""
    monkeypatch.setenv(WARNED_VARIABLE, "")
    monkeypatch.delenv(WARNED_VARIABLE)


def test_a_file_system_that_cannot_fsync_a_directory_is_used_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, unsaid: None
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL, directories=True))
    run = made(tmp_path / "Run")
    with locked(run):
        run.write_config()
    write_output(tmp_path / "file", b"data")
    keys.create(tmp_path / "keys")
    assert len(caplog.messages) == 1
    assert "this file system cannot fsync a directory" in caplog.messages[0]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("number", "directories", "said"),
    [
        (errno.EIO, True, "fsync of {}: input/output error; choose"),
        (errno.EIO, False, "fsync of {}/Run/corpus.bin: input/output error; choose"),
        (errno.EINVAL, False, "fsync of {}/Run/corpus.bin: invalid argument; choose"),
    ],
)
def test_any_other_failure_names_the_call_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, *, directories: bool
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number, directories=directories))
    with pytest.raises(UserError) as raised:
        made(tmp_path / "Run")
    assert said.format(tmp_path) in str(raised.value)


WITHOUT = r": this file system has no locks \(flock: .*\); use another one, or mount it with locks"


@pytest.mark.parametrize(
    ("number", "what"),
    [
        *((each, WITHOUT) for each in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)),
        (errno.EIO, r": flock: input/output error"),
    ],
)
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    run = made(tmp_path / "run")
    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(UserError, match=what):
        made(tmp_path / "other")
    with pytest.raises(UserError, match=what), locked(run):
        pass
    with pytest.raises(UserError, match=what):
        keys.create(tmp_path / "keys")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_lock_that_another_process_holds_is_no_such_file_system(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as one, (tmp_path / "lock").open("a") as other:
        lock_file(one, within=0)
        with pytest.raises(BlockingIOError):
            lock_file(other, within=0)


@pytest.mark.long
def test_all_processes_of_a_run_warn_once(manychar: Commands, text: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_DIRECTORY_SYNC)
    for arguments, warnings in (
        (("train", str(text), *SMALL, "--steps", "4", "--validation", "0.1"), 1),
        (("train", "--resume", "run", "--steps", "8"), 1),
        (("export", "run", "-o", "model.safetensors"), 1),
        (("keys", "create", "keys"), 1),
        (("verify", "run"), 0),
    ):
        run_dir = ("--run-dir", "run") if "--validation" in arguments else ()
        done = manychar.run(*arguments, *run_dir, env={"PYTHONPATH": str(tmp_path)})
        assert done.code == 0, done.err
        assert done.err.count("cannot fsync a directory") == warnings, done.err


def test_a_refused_output_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").touch()
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, directories=True))
    for name in ("new", "old"):
        with pytest.raises(UserError, match=r"fsync of .*: input/output error; give another -o"):
            write_output(tmp_path / name, b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
