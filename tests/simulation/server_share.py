"""The server's own share of the computing: a worker in its process, that dies with it.

No message of it is lost or late. It reads its mailbox while it computes, too, and abandons a shard
in the middle.
"""

from typing import TYPE_CHECKING, Any

from manychar.protocol.effects import Finish
from manychar.protocol.member import OWN_PEER, SHARE_NAME
from manychar.protocol.messages import Message
from tests.simulation.transcript import sent
from tests.simulation.worker_shell import WorkerShell

if TYPE_CHECKING:
    from tests.simulation.world import World


class ServerShare(WorkerShell):
    """The worker of one life of the server."""

    def __init__(self, world: "World") -> None:
        super().__init__(world, SHARE_NAME, f"share-{world.servers}", foreign=False)

    def arrive(self, message: Any) -> None:
        """Queue a message of the server, until the server's machine has returned."""
        self._mailbox.append(message)
        self.world.after(0.0, self._read_or_wake)

    def _read_or_wake(self) -> None:
        if not self._computing:
            self.wake()
            return
        while self.alive and self._mailbox and self.world.now >= self.asleep_until:
            self._receive(self._mailbox.popleft())
        if self.alive and self.machine.abandons_unit:
            self.world.log(lambda: f"    {self.name} abandons its shard")
            self._life += 1
            self._busy = self._computing = False
            self.wake()

    def _read(self, message: Any) -> Message:
        return message  # type: ignore[no-any-return]

    def _finish(self, finish: Finish) -> None:
        self.alive = False

    def _send(self, message: Message) -> None:
        world = self.world
        world.log(lambda: sent(f"    {self.name} sends", message))
        if world.server is not None and world.server.share is self:
            world.server.receive(OWN_PEER, message)
