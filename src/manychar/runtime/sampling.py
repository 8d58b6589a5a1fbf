"""Sampling: from a run directory, a checkpoint alone, or a live server, on any machine."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from manychar.numerics.model import Parameters, sample
from manychar.protocol.codec import decode, encode
from manychar.protocol.effects import Finish, Send, Show
from manychar.protocol.messages import Role, Weights, Welcome
from manychar.protocol.observer import Observer
from manychar.runtime.checkpoint import read_checkpoint
from manychar.runtime.errors import UserError
from manychar.runtime.peers import hello
from manychar.runtime.run_directory import open_run
from manychar.runtime.transport import Dealer


def load(source: Path) -> tuple[Parameters, str]:
    """Return (parameters, vocabulary) of a checkpoint file, or of a run's newest checkpoint.

    Raises UserError where there is none, or it is damaged.
    """
    if source.is_dir():
        checkpoint, _ = open_run(source).newest_checkpoint()
    else:
        checkpoint = read_checkpoint(source)
    return checkpoint.state.parameters, checkpoint.vocabulary


def draw(
    parameters: Parameters,
    vocabulary: str,
    generator: np.random.Generator,
    *,
    length: int,
    prime: str = "",
    temperature: float = 1.0,
    top_k: int = 0,
) -> Iterator[str]:
    """Yield `length` characters that follow a newline (or the first character) and the prime.

    Raises UserError for a prime with a character that the model does not know.
    """
    start = max(vocabulary.find("\n"), 0)
    ids = np.array([start, *_encode(prime, vocabulary)], dtype=np.intp)
    drawn = sample(parameters, generator, prime=ids, temperature=temperature, top_k=top_k)
    return (vocabulary[character] for character in islice(drawn, length))


def _encode(text: str, vocabulary: str) -> list[int]:
    id_of = {character: i for i, character in enumerate(vocabulary)}
    for position, character in enumerate(text):
        if character not in id_of:
            raise UserError(
                f"the model does not know {character!r} (U+{ord(character):04X}), character"
                f" {position + 1} of the prime: it was not in the text that it was trained on"
            )
    return [id_of[character] for character in text]


def fetch(endpoint: str, *, patience: float) -> tuple[Parameters, str]:
    """Return (parameters, vocabulary) of a live server: its newest weights.

    Raises UserError where no server answers within `patience` seconds, or it refuses.
    """
    dealer = Dealer(endpoint)
    machine = Observer(
        hello(Role.OBSERVER), server=endpoint, patience=patience, now=time.monotonic()
    )
    try:
        while True:
            dealer.socket.poll(100)
            effects = machine.tick(time.monotonic())
            while (frames := dealer.receive()) is not None:
                effects += machine.receive(decode(frames, machine.dimensions), time.monotonic())
            for effect in effects:
                match effect:
                    case Send(message):
                        dealer.send(encode(message))
                    case Show(Weights() as weights) if machine.session.welcome is not None:
                        return _unpacked(machine.session.welcome, weights)
                    case Finish(code, reason):
                        raise UserError(reason, code=code)
    finally:
        for effect in machine.leave("it has its sample"):
            if isinstance(effect, Send):
                dealer.send(encode(effect.message))
        dealer.close()


def _unpacked(welcome: Welcome, weights: Weights) -> tuple[Parameters, str]:
    size = welcome.dimensions
    flat = np.frombuffer(weights.weights, np.dtype(size.dtype).newbyteorder("<")).copy()
    vocabulary = bytes(welcome.vocabulary).decode()
    return Parameters(flat, size.vocabulary_size, size.hidden), vocabulary
