"""The server's loop with sockets that refuse: what one event leads to."""

import collections
import types
from typing import Any, cast

from manychar.fleet.server_loop import ServerLoop
from manychar.network.router import Unreachable
from manychar.protocol.effects import Effect, Send
from manychar.protocol.events import DeadlinePassed, Event, PeerLost
from manychar.protocol.messages import Alive

PEERS = 2_000  # more than the calls that the interpreter nests


class Grants:
    """A machine that answers the loss of a peer with a message to the next one."""

    def __init__(self) -> None:
        self.lost: list[int] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        number = 0
        if isinstance(event, PeerLost):
            self.lost.append(int(event.peer))
            number = self.lost[-1] + 1
        alive = Alive(run_id="r", term=1, session=1)
        return [Send(alive, b"%d" % number)] if number < PEERS else []


def test_the_loss_of_many_peers_at_once_is_handled_one_after_the_other() -> None:
    def send(*_: Any) -> bool:
        raise Unreachable

    server, machine = object.__new__(ServerLoop), Grants()
    server.__dict__ |= {
        "machine": machine,
        "lost": collections.deque(),
        "router": types.SimpleNamespace(send=send),
        "share": None,
    }
    server.handle(cast("Event", DeadlinePassed()))
    assert machine.lost == list(range(PEERS))
