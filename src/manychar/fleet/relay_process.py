"""The relay's shell: one socket above, one below, one loop. It computes nothing but sums."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from manychar.fleet.listener import Listener
from manychar.fleet.worker_process import WorkerLoop
from manychar.network.connection_limit import need_files
from manychar.network.dealer import Dealer
from manychar.network.endpoints import worker_command
from manychar.network.event_loop import EventLoop
from manychar.network.keys import ClientKey
from manychar.network.router import Router
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.protocol import effects
from manychar.protocol.events import FingerprintComputed, LeaveRequested
from manychar.protocol.messages import Hello, Peer
from manychar.protocol.relay import Relay

CHECK_EVERY = 1.0
AS_RELAY = FingerprintComputed("relay", {}, 0.0)


def relay(
    endpoint: str,
    bind: str,
    hello: Hello,
    *,
    connect_timeout: float,
    key: ClientKey | None = None,
    keys: Path | None = None,
    on_bound: Callable[[str], object] | None = None,
) -> effects.Finish:
    """Stand between the server at `endpoint` and the workers that connect to `bind`, until the end.

    `key` is for the server, `keys` say which workers are admitted; `on_bound` gets the endpoint
    that they connect to. Raises UserError for an endpoint that is bad or in use.
    """
    need_files("a relay")
    with EventLoop() as loop, contextlib.closing(Dealer(endpoint, key)) as dealer:
        now = time.monotonic()
        machine = Relay(hello, server=endpoint, connect_timeout=connect_timeout, now=now)
        router = Router(bind, None, keys)
        if on_bound is not None:
            on_bound(router.endpoint)
        shell = RelayLoop(machine=machine, dealer=dealer, loop=loop, router=router, keys=keys)
        try:
            return shell.run()
        except UserError as error:  # refused above: its workers end, too
            shell.handle(LeaveRequested(error.code, str(error)))
            raise
        finally:
            shell.router.close()


@dataclasses.dataclass(kw_only=True)
class RelayLoop(Listener, WorkerLoop):
    """Hands events from both sides to the machine and carries out its effects.

    How long a message may be depends on the run: it listens anew when the run's sizes are others.
    """

    machine: Relay
    router: Router
    keys: Path | None
    check_at: float = 0.0
    lost: collections.deque[Peer] = dataclasses.field(default_factory=collections.deque)

    def register(self) -> None:
        super().register()
        self.loop.on_deadline(lambda: self.check_at, self._check)
        self.listen()
        self.collect_regularly()

    def _check(self) -> None:
        self.check_at = time.monotonic() + CHECK_EVERY
        self.check_keys()
        self.router.limit_connections()

    def carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Send(message, to) if to is not None:
                self.send_to(to, message)
            case effects.ComputeFingerprint(welcome):
                endpoint = self.router.endpoint
                if welcome.dimensions != self.router.size:  # or messages down would be lost
                    self.stop_listening()
                    self.router = Router(endpoint, welcome.dimensions, self.keys)
                    self.listen()
                self.handle(AS_RELAY)
                at = self.machine.session.server
                joins = worker_command(endpoint, keys=self.keys is not None)
                logger.info(f"joined the run at {at}; a worker joins with: {joins}")
                self.notifier.ready(f"listening on {endpoint}")
            case effects.RememberBans():  # for the session: a worker that is wrong is found again
                pass
            case _:
                super().carry_out(effect)
