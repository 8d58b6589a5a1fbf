"""The one log format: what is trusted, what is cut off, and where a run goes on."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from manychar.storage.append_log import AppendLog, Extent, LogReader
from manychar.storage.journal import METRICS_NAME, read_metrics, resume_metrics


def written(path: Path, *records: dict[str, Any]) -> bytes:
    log = AppendLog(path, Extent())
    for record in records:
        log.append(record)
    log.close()
    return path.read_bytes()


def at(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "seconds": step / 10} for step in steps]


def test_a_record_is_a_line_of_json(tmp_path: Path) -> None:
    data = written(tmp_path / "log", {"step": 1, "text": "a\n\u00e9"}, {"nats": 0.1, "more": None})
    first, second = map(json.loads, data.splitlines())
    assert first.pop("crc") != second.pop("crc")
    assert [first, second] == [{"step": 1, "text": "a\n\u00e9"}, {"nats": 0.1, "more": None}]
    assert list(LogReader(tmp_path / "log")) == [first, second]


def test_a_record_that_is_missing_or_moved_shows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = written(path, *at(1, 2, 3)).splitlines(keepends=True)
    for order in ([0, 2], [1, 2], [1, 0, 2], [0, 0, 1, 2]):
        path.write_bytes(b"".join(lines[i] for i in order))
        reader = LogReader(path)
        kept = list(reader)
        assert kept == at(1, 2, 3)[: len(kept)]
        assert len(kept) == (1 if order[0] == 0 else 0)
        assert "wrong checksum" in reader.extent.fault


def test_a_reader_reads_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LogReader(path)
    assert list(reader) == []
    whole = written(path, *at(1, 2))
    path.write_bytes(whole[:-4])
    assert list(reader) == at(1)
    path.write_bytes(whole)
    assert list(reader) == at(2)
    assert reader.extent.fault == ""


def test_what_follows_a_damaged_record_is_kept_in_another_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A torn end is not: it is what a killed writer leaves."""
    path, damaged = tmp_path / "log", tmp_path / "log.damaged"
    lines = written(path, *at(1, 2, 3)).splitlines(keepends=True)
    for data, is_kept in ((lines[0] + b"{", False), (lines[0] + lines[2], True)):
        path.write_bytes(data)
        reader = LogReader(path)
        assert list(reader) == at(1)
        with caplog.at_level(logging.WARNING):
            AppendLog(path, reader.extent).close()
        assert path.read_bytes() == lines[0]
        assert damaged.exists() == is_kept
        assert caplog.text.rstrip().endswith(
            "wrong checksum: truncated there; all of it is in log.damaged"
            if is_kept
            else "torn record: truncated there"
        )
    assert damaged.read_bytes() == lines[0] + lines[2]


class TestMetrics:
    def test_are_cut_off_after_the_checkpoint(self, tmp_path: Path) -> None:
        path = tmp_path / METRICS_NAME
        whole = written(path, *at(100, 200, 300, 400))
        log, seconds = resume_metrics(tmp_path, 250)
        assert seconds == 20.0
        assert read_metrics(tmp_path) == at(100, 200)
        for record in at(300, 400):
            log.append(record)
        log.close()
        assert path.read_bytes() == whole
        log, seconds = resume_metrics(tmp_path, 0)
        log.close()
        assert seconds == 0.0
        assert path.read_bytes() == b""

    @pytest.mark.parametrize("torn", [b'{"step": 3', b"{}\n", b"null", b"\0\0\0", b"\xc3"])
    def test_with_a_torn_end(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: bytes
    ) -> None:
        path = tmp_path / METRICS_NAME
        whole = written(path, *at(100, 200))
        path.write_bytes(whole + torn)
        assert read_metrics(tmp_path) == at(100, 200)
        with caplog.at_level(logging.WARNING):
            log, seconds = resume_metrics(tmp_path, 1000)
        log.close()
        assert seconds == 20.0
        assert path.read_bytes() == whole
        assert "metrics.jsonl: byte" in caplog.text

    def test_that_are_not_there(self, tmp_path: Path) -> None:
        assert read_metrics(tmp_path) == []
        log, seconds = resume_metrics(tmp_path, 10)
        log.close()
        assert seconds == 0.0
