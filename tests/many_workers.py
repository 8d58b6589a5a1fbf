"""Hundreds of workers in one process, whose results are preset; or one process that sums the same.

    python -m tests.many_workers COUNT ENDPOINT …
    python -m tests.many_workers alone RUN STEPS     # prints the hash of the state

The machine and the codec of each worker are the program's own, and so is its connection; one thread
polls them all. Each line of standard input is a command, answered by one line of JSON: `replace N`
closes so many connections, as a kill does, and starts other workers; `units` asks how many each
worker has sent since the last such line. A run of workers ends with the standard input, or when the
server ends it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from manychar.network.connection_limit import raise_limit
from manychar.network.sockets import is_readable, new_socket
from manychar.processes.numerics_pinning import pin
from manychar.protocol import effects, events, messages
from manychar.protocol.codec import decode, encode
from manychar.protocol.worker import Worker

if TYPE_CHECKING:
    from manychar.protocol.dimensions import Dimensions

TABLE = 61  # preset results; a prime: neighbouring shards and steps have different ones
SECONDS_A_SHARD = 1e-3  # as every worker says: no range moves for speed
DEADLINES_EVERY = 0.01
CONNECT_TIMEOUT = 120.0


class Results:
    """The preset result of every shard at every step."""

    def __init__(self, parameters: int, hidden: tuple[int, int], dtype: str) -> None:
        import numpy as np  # noqa: PLC0415 - after the pinning

        rng = np.random.default_rng(20)
        little = np.dtype(dtype).newbyteorder("<")
        self._gradients = rng.standard_normal((TABLE, parameters)).astype(little)
        self._hidden = rng.standard_normal((TABLE, *hidden)).astype(little)
        self._losses = rng.uniform(1.0, 100.0, TABLE).tolist()
        for array in (self._gradients, self._hidden):
            array.setflags(write=False)

    def of(self, shard: int, step: int) -> tuple[float, Any, Any]:
        """Return (loss, gradient, next hidden state)."""
        row = (31 * shard + 7 * step) % TABLE
        return self._losses[row], self._gradients[row], self._hidden[row]


class PresetEngine:
    """Answers what the machines of all workers of this process want to have computed."""

    def __init__(self) -> None:
        self._results: Results | None = None
        self._fingerprint: events.FingerprintComputed | None = None
        self._weights: messages.Frame = b""
        self._digest = b""

    def fingerprint(self, welcome: messages.Welcome) -> events.FingerprintComputed:
        if self._fingerprint is None:
            pin(welcome.numerics)
            from manychar.fleet.engine import Engine  # noqa: PLC0415 - numpy, now that it is pinned

            self._fingerprint = Engine(welcome.dimensions).compute_fingerprint()
            self._results = _results_of(welcome.dimensions)
        return self._fingerprint

    def compute(self, unit: effects.Compute) -> events.Computed:
        from manychar.protocol.unit_payload import as_frame, folded_digest  # noqa: PLC0415

        assert self._results is not None
        if unit.weights is not self._weights:
            self._weights, self._digest = unit.weights, folded_digest(unit.weights)
        loss, gradient, hidden = self._results.of(unit.shard, unit.step)
        return events.Computed(
            unit.shard,
            unit.step,
            self._digest,
            loss=loss,
            gradient=gradient,
            hidden=as_frame(hidden),
            longest_piece=SECONDS_A_SHARD,
            seconds=SECONDS_A_SHARD,
        )


def _results_of(size: "Dimensions") -> Results:
    from manychar.numerics.model import count_parameters  # noqa: PLC0415 - numpy

    parameters = count_parameters(size.vocabulary_size, size.hidden)
    return Results(parameters, (size.streams, size.hidden), size.dtype)


class PresetWorker:
    """The shell of one worker."""

    def __init__(
        self, name: str, endpoint: str, context: "zmq.Context[Any]", engine: PresetEngine
    ) -> None:
        now = time.monotonic()
        hello = messages.Hello(
            wire=messages.WIRE_VERSION,
            role=messages.Role.WORKER,
            name=name,
            instance=os.urandom(8).hex(),
            machine={"host": "many"},
        )
        self.name = name
        self.is_leased = False
        self.units = 0
        self.finish: effects.Finish | None = None
        self._engine = engine
        self._machine = Worker(hello, server=endpoint, connect_timeout=CONNECT_TIMEOUT, now=now)
        self.socket = new_socket(context, zmq.DEALER, endpoint)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is sent while there is no connection
        self.socket.connect(endpoint)

    def turn(self) -> None:
        """Read the mailbox, then compute shard after shard, and read it between two."""
        wanted = True
        while wanted and self.finish is None:
            while self.finish is None and is_readable(self.socket):
                frames = [f.buffer for f in self.socket.recv_multipart(copy=False)]
                message = decode(frames, self._machine.dimensions, self._machine.expected_weights)
                self.is_leased |= isinstance(message, messages.Grant)
                self._handle(events.Received(message))
            wanted = self._handle(events.MailboxEmpty())

    def tick(self, now: float) -> None:
        """Do what is due."""
        if (due := self._machine.deadline()) is not None and now >= due:
            self._handle(events.DeadlinePassed())

    def kill(self) -> None:
        """Close the connection without a word."""
        self.socket.close(0)

    def _handle(self, event: events.Event) -> bool:
        following = self._machine.handle(event, time.monotonic())
        for effect in following:
            self._carry_out(effect)
        return bool(following)

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Send(message):
                self.units += isinstance(message, messages.UnitResult)
                try:
                    self.socket.send_multipart(encode(message), zmq.NOBLOCK)
                except zmq.Again:  # no connection: the machine sends it again
                    return
            case effects.Compute():
                self._handle(self._engine.compute(effect))
            case effects.ComputeFingerprint(welcome):
                self._handle(self._engine.fingerprint(welcome))
            case effects.Log(text):
                print(f"{self.name}: {text}", file=sys.stderr, flush=True)
            case effects.Finish():
                self.finish = effect
            case _:
                raise RuntimeError(f"a worker's shell cannot carry out {effect}")


class ManyWorkers:
    """The workers by socket, the oldest first; each is connected to the next of the endpoints."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        raise_limit()
        self._endpoints = endpoints
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65_535)
        self._engine = PresetEngine()
        self._poller = zmq.Poller()
        self._workers: dict[Any, PresetWorker] = {}
        self._started = 0
        self._tick_at = 0.0
        self._is_over = False
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)

    def start(self, count: int) -> None:
        """Start workers, and answer when each of those that are there holds a lease."""
        began = time.monotonic()
        for _ in range(count):
            endpoint = self._endpoints[self._started % len(self._endpoints)]
            name = f"many-{self._started}"
            worker = PresetWorker(name, endpoint, self._context, self._engine)
            self._workers[worker.socket] = worker
            self._poller.register(worker.socket, zmq.POLLIN)
            self._started += 1
        self._turn_until(lambda: all(worker.is_leased for worker in self._workers.values()))
        _answer({"leased": time.monotonic() - began})

    def run(self) -> None:
        """Carry out commands until the server or the parent ends the run."""
        while not self._is_over:
            self._turn_until(lambda: False)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        self._context.term()

    def _turn_until(self, true: Callable[[], bool]) -> None:
        while not self._is_over and not true():
            ready = dict(self._poller.poll(int(1000 * DEADLINES_EVERY)))
            if ready.pop(sys.stdin.fileno(), None):
                self._command(sys.stdin.readline().split())
            for socket in ready:
                if (worker := self._workers.get(socket)) is not None:
                    worker.turn()
            self._tick(time.monotonic())

    def _tick(self, now: float) -> None:
        if now < self._tick_at:
            return
        self._tick_at = now + DEADLINES_EVERY
        for worker in self._workers.values():
            worker.tick(now)
        self._is_over |= any(worker.finish is not None for worker in self._workers.values())

    def _command(self, words: Sequence[str]) -> None:
        match words:
            case ["replace", count]:
                for socket in list(self._workers)[: int(count)]:
                    self._poller.unregister(socket)
                    self._workers.pop(socket).kill()
                self.start(int(count))
            case ["units"]:
                _answer({worker.name: worker.units for worker in self._workers.values()})
                for worker in self._workers.values():
                    worker.units = 0
            case _:
                self._is_over = True


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)


def _alone(run: Path, steps: int) -> str:
    """Return the hash of a run's state after some steps, its results added up by this process."""
    definition = json.loads((run / "config.json").read_text(encoding="utf-8"))["definition"]
    pin(definition["numerics"])
    from manychar.numerics.training_step import apply, start  # noqa: PLC0415 - after the pinning
    from manychar.numerics.tree_reduction import TreeSum, sum_in_tree  # noqa: PLC0415
    from manychar.protocol.run_spec import dimensions_of  # noqa: PLC0415
    from manychar.storage.run_directory import open_run  # noqa: PLC0415
    from tests.single_process import bits_of  # noqa: PLC0415

    directory = open_run(run)
    vocabulary, _ = directory.corpus()
    results = _results_of(dimensions_of(directory.definition, len(vocabulary)))
    state, shards = start(directory.definition, len(vocabulary)), directory.definition.shards
    for step in range(steps):
        of_shards = [results.of(shard, step) for shard in range(shards)]
        total: TreeSum[Any] = TreeSum(shards)
        hidden = state.hidden.copy()
        for shard, (_, gradient, after) in enumerate(of_shards):
            total.put((shard, shard), gradient)
            hidden[shard] = after
        state = apply(
            state,
            directory.definition,
            gradient_halves=total.halves(),
            loss_sum=sum_in_tree([loss for loss, *_ in of_shards]),
            hidden=hidden,
        )
    return bits_of(state)


def main(first: str, *others: str) -> None:
    """Run what the command line asks for."""
    if first == "alone":
        run, steps = others
        print(_alone(Path(run), int(steps)))
        return
    workers = ManyWorkers(others)
    try:
        workers.start(int(first))
        workers.run()
    finally:
        workers.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
