"""The side of a server's or relay's loop that listens: a ROUTER's messages in and out."""

import collections
import gc
import time
from collections.abc import Callable, Iterable
from typing import Any

from manychar.network.event_loop import EventLoop
from manychar.network.router import Router, Unreachable
from manychar.protocol import effects, events
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.counters import Counter
from manychar.protocol.messages import Message, Peer

MESSAGES_A_TURN = 1000
COLLECT_EVERY = 60.0
ADDRESSES_SHOWN = 3


def most_frequent(addresses: Iterable[str]) -> str:
    """Return the addresses that occur most often, for a sentence, and the number of the others."""
    counted = collections.Counter(addresses)
    shown = ", ".join(address for address, _ in counted.most_common(ADDRESSES_SHOWN))
    more = len(counted) - ADDRESSES_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


class Listener:
    """Base of the server's and relay's loop: receives from many peers, and sends to them."""

    machine: Any
    router: Router
    loop: EventLoop
    lost: collections.deque[Peer]
    carry_out: Callable[[effects.Effect], None]
    collect_at = 0.0

    def handle(self, event: events.Event) -> bool:
        """Carry out what follows from an event, then from each loss of a peer that it showed.

        Losses wait for their turn: where many peers are gone, each leads to a message to the next.
        Returns whether anything followed from the event.
        """
        following = self.machine.handle(event, time.monotonic())
        for effect in following:
            self.carry_out(effect)
        while self.lost:
            lost = events.PeerLost(self.lost.popleft())
            for effect in self.machine.handle(lost, time.monotonic()):
                self.carry_out(effect)
        return bool(following)

    def collect_regularly(self) -> None:
        """From now on, collect once a minute what is not as old as the process."""
        gc.collect()
        gc.freeze()
        self.loop.on_deadline(lambda: self.collect_at, self._collect)

    def _collect(self) -> None:
        """Empty CPython's free lists, as a full collection does: decoding fills them.

        They take up to a MiB. The interpreter itself hardly ever collects here, because as many
        objects are freed as are made.
        """
        self.collect_at = time.monotonic() + COLLECT_EVERY
        gc.collect()

    def listen(self) -> None:
        if (authenticator := self.router.authenticator) is not None:
            self.loop.on_readable(authenticator.socket, authenticator.answer)
        self.loop.on_readable(self.router.socket, self._read_router)

    def stop_listening(self) -> None:
        """Close the socket, and send nothing that is queued."""
        if (authenticator := self.router.authenticator) is not None:
            self.loop.remove(authenticator.socket)
        self.loop.remove(self.router.socket)
        self.router.close(0)

    def check_keys(self) -> None:
        """Log what handshakes failed, and look for revoked keys; to be called once a second."""
        if (authenticator := self.router.authenticator) is not None:
            if refused := authenticator.take_refused():
                whose = f"with a key that is unknown or revoked, from {most_frequent(refused)}"
                reason = f"handshakes refused: {len(refused):,}, {whose}"
                self.handle(events.Dropped(Counter.HANDSHAKES_REFUSED, len(refused), reason))
            for peer, member in list(self.machine.membership.members.items()):
                if member.owner is not None and not authenticator.still_owns(member.owner):
                    self.handle(events.KeyRevoked(peer))
        if failed := self.router.failed_handshakes():
            what = f"handshakes failed: {failed:,} (each attempt of a client counts)"
            reason = f"{what}: no key, another server's, or not finished within 5 s"
            self.handle(events.Dropped(Counter.HANDSHAKES_FAILED, failed, reason))

    def _read_router(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            if (received := self.router.receive()) is None:
                return
            peer, frames, owner, revoked = received
            if revoked:
                self.handle(events.KeyRevoked(peer))
                continue
            try:
                message = decode(frames, self.machine.dimensions, self.machine.expected_results)
                self.handle(events.Received(message, peer, owner))
            except (WireError, events.PeerError) as error:
                self.handle(events.Malformed(peer, str(error), owner))

    def send_to(self, peer: Peer, message: Message) -> None:
        """Send to a peer; where it is gone, the machine is told next."""
        try:
            if not self.router.send(peer, encode(message)):
                self.handle(events.Dropped(Counter.SENDS_DROPPED))
        except Unreachable:
            self.lost.append(peer)
