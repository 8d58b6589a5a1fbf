"""What the server's loop writes, without a server."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from manychar.fleet import server_process
from manychar.fleet.server_loop import ServerLoop
from manychar.protocol.effects import RecordMetrics
from manychar.storage.journal import AppliedStep, read_journal, read_metrics
from tests.protocol.stage import status
from tests.storage.test_recovery import resumed
from tests.storage.test_run_directory import made


def test_the_journal_is_not_behind_the_metrics(tmp_path: Path) -> None:
    """Else a restart after a crash would count too few steps that are done again.

    A relay's workers are counted, and not the relay.
    """
    run = made(tmp_path / "run")
    loop = ServerLoop.__new__(ServerLoop)
    members = {name: SimpleNamespace(workers=n) for name, n in (("rack", 3), ("ann", 1))}
    membership = SimpleNamespace(members=members, holders=members.keys)
    loop.machine = SimpleNamespace(membership=membership)  # type: ignore[assignment]
    with resumed(run, 1) as loop.resume_point:
        loop.resume_point.journal.append(AppliedStep(1, 100, 1.0, "00000000"))
        loop.carry_out(RecordMetrics(status(step=100)))
        assert read_journal(run.path, run.run_id).newest == 100
    assert read_metrics(run.path)[-1]["workers"] == 4


def test_a_log_that_cannot_be_closed_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    def close() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server_process._close(SimpleNamespace(path=Path("run/journal.jsonl"), close=close))  # type: ignore[arg-type]
    assert caplog.messages == ["journal not written: no space left on device"]
