"""Files that are replaced: what of the old one stays."""

import os
import stat
from pathlib import Path

import pytest

from manychar.storage.atomic_files import replace_file, write_output


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
