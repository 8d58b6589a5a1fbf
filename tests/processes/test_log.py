"""What a line of the log may contain."""

import json

import pytest

from manychar.processes import log

NAME = "a\x1b[31m\x9b31mb\u3000é"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_terminal_is_sent_no_control_sequence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv(log.FORMAT_VARIABLE, form)
    log.configure()
    log.logger.error(f"{NAME}: not there\nno\tsecond\rline")
    written = capsys.readouterr().err
    if form == "json":
        assert json.loads(written)["text"] == f"{NAME}: not there\nno\tsecond\rline"
    else:
        assert written == "a\\x1b[31m\\x9b31mb\u3000é: not there\\x0ano\\x09second\\x0dline\n"
