"""What pyzmq itself can do: the exchange's frames between a ROUTER and two DEALERs, and no more.

The bytes of a step are those of this program's messages; nobody reads, checks or sums them.
"""

import multiprocessing
from collections.abc import Callable

import zmq

from manychar.numerics.model import count_parameters
from tests.benchmarks.pace import per_second
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task

WORKERS = 2
HEADER_BYTES, SMALL_BYTES = 150, 400


def answer(endpoint: str, size: int) -> None:
    """Send a gradient's frames for each message that comes."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    gradient = [bytes(HEADER_BYTES), bytes(size), bytes(SMALL_BYTES)]
    socket.send_multipart([b""])
    while True:
        socket.recv_multipart(copy=False)
        socket.send_multipart(gradient)


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Step on; the figure is steps a second, the note how many parameters there are."""
    V, _ = read_ids(task.text)
    count = count_parameters(V, task.hidden)
    size = count * 4
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind("tcp://127.0.0.1:*")
    endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
    for _ in range(WORKERS):
        multiprocessing.get_context("spawn").Process(
            target=answer, args=(endpoint, size), daemon=True
        ).start()
    peers = [router.recv_multipart()[0] for _ in range(WORKERS)]

    def step() -> None:
        weights = zmq.Frame(bytes(size), copy=True)
        for peer in peers:
            router.send_multipart([peer, bytes(HEADER_BYTES), weights, bytes(SMALL_BYTES)])
        for _ in peers:
            router.recv_multipart(copy=False)

    return f"{count:,}", lambda _: per_second(step, task.seconds)
