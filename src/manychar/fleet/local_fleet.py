"""A server, its workers, and relays between them on one machine: `train`.

The parent is an observer of its own server, and supervises it and the workers: a process that
crashes is started again, and when one crashes again and again, the run is stopped.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import signal
import time
from collections.abc import Callable, Sequence

from manychar.fleet.launch_options import STARTED_WORKERS
from manychar.network.client_identity import WITHOUT_KEYS
from manychar.network.connection_limit import need_files
from manychar.network.endpoints import is_local
from manychar.network.event_loop import EventLoop
from manychar.network.keys import read_client_key
from manychar.network.private_endpoint import OBSERVER, PrivateEndpoint, private_endpoint
from manychar.numerics.option import as_flags, options_of
from manychar.observability.observer_client import ENDED_WELL, ObserverClient
from manychar.observability.progress import ProgressDisplay
from manychar.observability.snapshot import Snapshot
from manychar.processes import log, parent_death
from manychar.processes.child_process import ChildProcess, how_it_ended
from manychar.processes.errors import CRASHED, UserError, stopping
from manychar.processes.log import logger
from manychar.processes.signals import STOPS
from manychar.processes.supervisor import ProcessSlot, Supervisor, log_again
from manychar.protocol.effects import RUN_FAILED, STOPPED, Finish
from manychar.protocol.messages import Weights
from manychar.protocol.run_operation import Operation
from manychar.storage.run_directory import RunDirectory

SECONDS_TO_END = 15.0
OBSERVER_CONNECT_TIMEOUT = 60.0
OF_CLIENTS = {"connect_timeout": 300.0, "child": True}
ENVIRONMENT = {**log.FOR_A_PARENT, **WITHOUT_KEYS}


# Methods and attributes: a run's children, what is shown of it, and how it ends belong together.
class LocalFleet:
    """The children of one run. `on_status` gets what the display shows.

    With relays, each has the same number of the workers, and the server does not compute.
    """

    def __init__(
        self,
        directory: RunDirectory,
        display: ProgressDisplay,
        on_status: Callable[[Snapshot], None] = lambda _: None,
        *,
        bind: str | None = None,
        relays: int = 0,
    ) -> None:
        self.directory = directory
        self._display = display
        self._on_status = on_status
        self._bind = bind
        self.server = ProcessSlot(name="the server", arguments=[], on_line=self._read_line)
        self._compute = directory.operation.compute and not relays
        self.workers = [
            ProcessSlot(name=f"worker-{i + 1}", arguments=[])
            for i in range(directory.operation.workers - self._compute)
        ]
        self.relays = [ProcessSlot(name=f"relay-{i + 1}", arguments=[]) for i in range(relays)]
        self._listening: ChildProcess | None = None
        self._client: ObserverClient | None = None
        self._stop: Finish | None = None
        self._finish: Finish | None = None
        self._code: int | None = None
        self._kill_at: float | None = None

    def run(self) -> Finish:
        """Train until the run ends or is stopped; every child is gone when it returns.

        Raises UserError with the server's reason where it could not start.
        """
        need_files("a server and its workers")
        with contextlib.ExitStack() as stack:
            self._loop = stack.enter_context(EventLoop())
            self._loop.on_signal(self._signalled, *STOPS)
            names = [slot.name for slot in (*self.relays, *self.workers)]
            self._private = stack.enter_context(private_endpoint(names))
            self._above = PrivateEndpoint(self._bind) if self._bind else self._private
            self._connection = stack.enter_context(contextlib.ExitStack())
            env = {**ENVIRONMENT, STARTED_WORKERS: str(self.directory.operation.workers)}
            env[parent_death.DIRECTORY] = self._private.directory
            self._supervisor = Supervisor(
                self._loop, on_end=self._child_ended, on_log=self._forward, env=env
            )
            stack.callback(self._supervisor.stop, SECONDS_TO_END)
            self._loop.on_deadline(lambda: self._kill_at, self._kill_server)
            self.server.arguments = self._server_arguments(self._above.bind)
            self._supervisor.start(self.server)
            while self._code is None:
                self._loop.turn()
        return self._result()

    def _server_arguments(self, bind: str) -> list[str]:
        taken, keys = options_of(Operation, role="server"), self._above.keys
        values = {name: getattr(self.directory.operation, name) for name in taken}
        values |= {"compute": self._compute, "bind": bind, "keys": keys}
        values["insecure"] = not (keys or is_local(bind))
        return ["server", "--resume", str(self.directory.path), "--child", *as_flags(values)]

    def _read_line(self, line: str) -> None:
        """Read where the server listens, or how the run ended."""
        values = json.loads(line)
        if "code" in values:
            self._finish = Finish(**values)
            return
        self._listening = self.server.process
        if self._client is None:
            self._start_clients(values["endpoint"])
        else:  # a server that was started again listens where the first one did
            self._client.connect(OBSERVER_CONNECT_TIMEOUT)

    def _start_clients(self, endpoint: str) -> None:
        logger.info(f"the server listens on {endpoint}")
        self.server.arguments = self._server_arguments(endpoint)
        path = self._above.client_key(OBSERVER)
        key = read_client_key(path) if path else None
        self._client = ObserverClient(endpoint, key, connect_timeout=OBSERVER_CONNECT_TIMEOUT)
        self._connection.callback(self._client.close)
        self._loop.on_readable(self._client.socket, self._observe)
        self._loop.on_deadline(self._client.deadline, self._observe)
        self._loop.on_suspension(self._client.suspended)
        for relay in self.relays:
            relay.on_line = functools.partial(self._relay_listens, relay, endpoint)
            bind = self._private.bind_of(relay.name)
            relay.arguments = self._relay_arguments(relay, endpoint, bind)
            self._supervisor.start(relay)
        if not self.relays:
            self._start_workers(self.workers, endpoint, self._above)

    def _relay_arguments(self, relay: ProcessSlot, endpoint: str, bind: str) -> list[str]:
        own = {"bind": bind, "keys": self._private.keys, "key": self._above.client_key(relay.name)}
        return ["relay", endpoint, "--name", relay.name, *as_flags(own | OF_CLIENTS)]

    def _relay_listens(self, relay: ProcessSlot, above: str, line: str) -> None:
        """Start its workers; those of one that was started again connect to the same endpoint."""
        endpoint, first = json.loads(line)["endpoint"], self.relays.index(relay)
        relay.arguments = self._relay_arguments(relay, above, endpoint)
        new = [slot for slot in self.workers[first :: len(self.relays)] if not slot.arguments]
        self._start_workers(new, endpoint, self._private)

    def _start_workers(
        self, workers: Sequence[ProcessSlot], endpoint: str, place: PrivateEndpoint
    ) -> None:
        for slot in workers:
            own = OF_CLIENTS | {"key": place.client_key(slot.name)}
            slot.arguments = ["worker", endpoint, "--name", slot.name, *as_flags(own)]
            self._supervisor.start(slot)

    def _observe(self) -> None:
        if self._client is None:
            return
        try:
            events = self._client.turn()
        except UserError as error:
            logger.warning(str(error))
            return
        for event in events:
            if isinstance(event, Snapshot):
                self._display.status(event)
                self._on_status(event)
            elif isinstance(event, Weights):
                self._display.weights(event)
        if self._client.connecting and self._client.end is not None:
            # One that listens hangs: another one resumes from its last checkpoint. One that does
            # not is still starting.
            if self._listening is self.server.process:
                logger.warning(f"{self._client.end.reason}: ending it")
                self.server.signal(signal.SIGKILL)
            self._client.connect(OBSERVER_CONNECT_TIMEOUT)

    def _forward(self, slot: ProcessSlot, line: str) -> None:
        _, level, _ = log.read(line)
        if slot is self.server or level > logging.INFO:  # the server logs joining and leaving
            log_again(slot, line)

    def _signalled(self, number: int) -> None:
        endless = self.directory.operation.steps == 0
        self.stop(0 if endless and number == signal.SIGINT else STOPS[number], number=number)

    def stop(self, code: int, reason: str = "stopped", number: int = signal.SIGTERM) -> None:
        """Have the server end its step, write a checkpoint and finish; then exit with `code`."""
        if self._stop is not None:
            return
        self._stop = Finish(code, reason)
        if self.server.process is None:
            self._code = STOPPED
            return
        logger.info(stopping(number))
        self._kill_at = time.monotonic() + SECONDS_TO_END
        self.server.signal(number)

    def _kill_server(self) -> None:
        self._kill_at = None
        logger.warning(f"the server did not stop within {SECONDS_TO_END:.0f} s: killed")
        self.server.signal(signal.SIGKILL)

    def _child_ended(self, slot: ProcessSlot, code: int) -> None:
        if self._code is not None:
            return  # the run has ended
        crashed = code < 0 or code == CRASHED
        if slot is self.server and (self._stop or self._finish or not crashed):
            self._observe()  # the last status
            self._code = code
        elif self._stop or (slot is not self.server and (code == 0 or self._is_ended())):
            return
        elif code == RUN_FAILED:  # another start would end in the same way
            logger.warning(f"{slot.name} ended {how_it_ended(code)}: not started again")
            groups = [self.workers, *[self.relays] * bool(self.relays)]
            if not self._compute and any(all(each.is_empty for each in group) for group in groups):
                self.stop(RUN_FAILED, "no worker is left")
        elif failure := self._supervisor.restart(slot, code):
            self.stop(RUN_FAILED, failure)

    def _is_ended(self) -> bool:
        """Whether the server has told its clients that the run has ended."""
        return self._client is not None and not self._client.connecting and bool(self._client.end)

    def _result(self) -> Finish:
        code = self._code or 0
        finish = self._finish or Finish(code, f"the server ended {how_it_ended(code)}")
        if self._stop is not None and (finish.code < 0 or finish.code in ENDED_WELL):
            own = self._finish is None or self._stop.code == RUN_FAILED
            return self._stop if own else dataclasses.replace(finish, code=self._stop.code)
        if finish.code and self._client is None:
            raise UserError(finish.reason, code=finish.code)
        return finish
