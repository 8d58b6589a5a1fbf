"""How a run of `train` ends, from what its server said."""

from typing import Any, cast

import pytest

from manychar.fleet.local_fleet import LocalFleet
from manychar.protocol.effects import Finish

BY_CTRL_C = "the server was stopped by Ctrl-C; training diverges with --learning-rate 20"


@pytest.mark.parametrize(
    ("stop", "said", "result"),
    [
        (None, Finish(0, "finished"), Finish(0, "finished")),
        (Finish(0, "stopped"), Finish(130, BY_CTRL_C), Finish(0, BY_CTRL_C)),
        (Finish(75, "stopped"), None, Finish(75, "stopped")),
        (Finish(3, "no worker"), Finish(75, "by SIGTERM"), Finish(3, "no worker")),
        (Finish(75, "stopped"), Finish(3, "disk full"), Finish(3, "disk full")),
    ],
)
def test_a_stop_ends_with_what_the_server_said(
    stop: Finish | None, said: Finish | None, result: Finish
) -> None:
    fleet = LocalFleet.__new__(LocalFleet)
    fleet._stop, fleet._finish, fleet._code, fleet._client = stop, said, 75, cast("Any", "its own")
    assert fleet._result() == result
