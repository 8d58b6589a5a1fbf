"""What relays save the server: messages and bytes, counted with the real machines and codec."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from manychar.fleet.capacity import RESULT_HEADER, WEIGHTS_HEADER, inward, outward
from manychar.numerics.run_definition import Definition, choose_streams
from manychar.protocol.codec import encode
from manychar.protocol.effects import Compute, ComputeFingerprint, Effect, Send
from manychar.protocol.events import DeadlinePassed, FingerprintComputed, MailboxEmpty, Received
from manychar.protocol.messages import Message, NewWeights, UnitResult
from manychar.protocol.relay import Relay
from manychar.protocol.run_spec import dimensions_of
from manychar.protocol.worker import Worker
from tests.protocol.stage import FINGERPRINT, LIBRARIES, Stage, computed, hello

SHARDS, FROM, TO = 64, 4, 10


@dataclasses.dataclass
class Client:
    """A worker or relay, and the client that it is connected to; the server is nobody."""

    machine: Any
    above: str = ""


class Fleet:
    """A server, its workers and relays; what is sent arrives at once, in order."""

    def __init__(self, relays: int) -> None:
        self.stage = Stage(shards=SHARDS)
        self.clients = {f"r{i}": self._client(Relay, f"r{i}") for i in range(relays)}
        for i in range(SHARDS):
            above = f"r{i * relays // SHARDS}" if relays else ""
            self.clients[f"w{i}"] = self._client(Worker, f"w{i}", above)
        self.queue: collections.deque[tuple[str, Received]] = collections.deque()
        self.inward: list[Message] = []
        self.outward: list[Message] = []
        self.now = 0.0

    def _client(self, kind: type[Any], name: str, above: str = "") -> Client:
        machine = kind(hello(name), server="there", connect_timeout=60.0, now=0.0)
        return Client(machine, above)

    def carry_out(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message, bytes(peer)):
                    self.queue.append((peer.decode(), Received(message)))
                    if not name:
                        self.outward.append(message)
                case Send(message):
                    above = self.clients[name].above
                    self.queue.append((above, Received(message, name.encode())))
                    if not above:
                        self.inward.append(message)
                case ComputeFingerprint():
                    self.handle(name, FingerprintComputed(FINGERPRINT, LIBRARIES, 0.0))
                case Compute():
                    self.handle(name, computed(effect, self.stage.known))

    def handle(self, name: str, event: Any) -> bool:
        machine = self.clients[name].machine if name else self.stage.server
        effects = machine.handle(event, self.now)
        self.carry_out(name, effects)
        return bool(effects)

    def run(self, *, to: int) -> None:
        """Go on until the server is at this step."""
        while self.stage.server.state.step < to:
            assert self.now < 60, "it takes too long"
            while self.queue:
                self.handle(*self.queue.popleft())
            computing = [self.handle(name, MailboxEmpty()) for name in self.clients]
            if not any(computing) and not self.queue:
                self.now += 0.1
                for name in ("", *self.clients):
                    self.handle(name, DeadlinePassed())


def traffic(relays: int) -> tuple[list[UnitResult], list[NewWeights]]:
    """Return the results that came to the server between two steps, and the weights it sent."""
    fleet = Fleet(relays)
    fleet.run(to=FROM)
    fleet.inward.clear()
    fleet.outward.clear()
    fleet.run(to=TO)
    known = fleet.stage.known.weights[TO]
    assert bytes(fleet.stage.server.aggregation.weights) == known
    return (
        [message for message in fleet.inward if isinstance(message, UnitResult)],
        [message for message in fleet.outward if isinstance(message, NewWeights)],
    )


def test_eight_relays_of_eight_workers_send_an_eighth() -> None:
    size = Stage(shards=SHARDS).server.dimensions
    steps = TO - FROM
    for relays, clients in ((0, SHARDS), (8, 8)):
        each = SHARDS // clients
        ranges = [(first, first + each - 1) for first in range(0, SHARDS, each)]
        results, weights = traffic(relays)
        assert (len(results), len(weights)) == (steps * clients, steps * clients)
        assert sum(len(result.payload.sums) for result in results) == steps * clients
        both: list[tuple[Sequence[Message], int, int]] = [
            (results, inward(size, ranges), RESULT_HEADER),
            (weights, outward(size, ranges), WEIGHTS_HEADER),
        ]
        for messages, formula, header in both:
            sent = sum(len(frame) for message in messages for frame in encode(message))
            assert sent <= steps * formula <= sent + steps * clients * header


@pytest.mark.parametrize("hidden", [100, 256, 512])
def test_all_bytes_are_an_eighth_with_the_default_streams(hidden: int) -> None:
    """Each shard's hidden states come all the same, but with 64 shards they have one stream."""
    definition = Definition(corpus_sha256="0" * 64, hidden=hidden, shards=SHARDS, streams=1)
    assert choose_streams(hidden, SHARDS) == definition.streams
    size = dimensions_of(definition, 65)
    single, of_relays = ([(i, i + n - 1) for i in range(0, SHARDS, n)] for n in (1, 8))
    assert inward(size, single) / inward(size, of_relays) == pytest.approx(8, rel=0.04)
    assert outward(size, single) / outward(size, of_relays) == pytest.approx(8, rel=0.04)
