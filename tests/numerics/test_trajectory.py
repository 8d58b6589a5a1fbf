"""The trainer, step by step, against a plain min-char-rnn and plain re-computations."""

import dataclasses
import hashlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from manychar.numerics.corpus import Batch, Streams
from manychar.numerics.kernel import Kernel
from manychar.numerics.model import Parameters, initialize
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import (
    TrainingState,
    advance,
    compute_shard,
    kernel_of,
    start,
    weights_sha256,
)
from tests.encoding import encode
from tests.numerics import reference, specification

TEXT = "she sells sea shells; he sells she-shells, she says. "


def definition_of(**values: Any) -> Definition:
    small: dict[str, Any] = {
        "corpus_sha256": "0" * 64,
        "hidden": 6,
        "seq_length": 5,
        "shards": 1,
        "streams": 1,
        "dtype": "float64",
    }
    return Definition(**(small | values))


def begin(definition: Definition, text: str) -> tuple[TrainingState, Streams]:
    vocabulary, ids = encode(text)
    streams = Streams(ids, definition.shards, definition.streams, definition.seq_length)
    return start(definition, len(vocabulary)), streams


def run(definition: Definition, text: str, steps: int) -> list[TrainingState]:
    """Return states 0 … steps."""
    state, streams = begin(definition, text)
    states, kernel = [state], kernel_of(definition, state.parameters.vocabulary_size)
    for _ in range(steps):
        states.append(advance(states[-1], definition, streams, kernel))
    return states


def computed(
    parameters: Parameters, batch: Batch, hidden: NDArray[Any]
) -> tuple[float, Parameters, NDArray[Any]]:
    kernel = Kernel(
        parameters.vocabulary_size,
        parameters.hidden_size,
        seq_length=batch.ids.shape[1] - 1,
        streams=len(batch.ids),
        dtype=hidden.dtype.name,
    )
    kernel.load(parameters.flat)
    return compute_shard(kernel, batch, hidden)


@pytest.mark.parametrize("ids", [[0, 1, 6], [6, 1, 0], [6, *[1] * 8], [*[1] * 8, 6]])
def test_an_id_beyond_the_vocabulary_is_refused(ids: list[int]) -> None:
    batch = Batch(np.array([ids], np.uint8), fresh=True)
    with pytest.raises(IndexError):
        computed(initialize(6, 3), batch, np.zeros((1, 3), np.float32))


def assert_same_weights(state: TrainingState, weights: reference.Weights) -> None:
    for name, array in state.parameters.named().items():
        message = f"{name} of step {state.step}"
        np.testing.assert_allclose(array, weights[name], rtol=1e-9, atol=1e-11, err_msg=message)


# ---- One shard of one stream is min-char-rnn


@pytest.mark.parametrize("bound", [5.0, 0.05])
@pytest.mark.parametrize("length", [6, 7, 11, 12, 40, len(TEXT)])
def test_one_stream_follows_min_char_rnn(length: int, bound: float) -> None:
    text = TEXT[:length]
    definition = definition_of(clip=bound)
    states = run(definition, text, 300)
    plain = reference.train(
        reference.double(states[0].parameters.named()),
        encode(text)[1].tolist(),
        seq_length=definition.seq_length,
        clip=bound,
    )
    for state, expected in zip(states[1:], itertools.islice(plain, 300), strict=True):
        assert_same_weights(state, expected.weights)
        memory = state.parameters.like(state.memory).named()
        for name, array in memory.items():
            np.testing.assert_allclose(array, expected.memory[name], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(state.hidden[0, 0], expected.hidden, rtol=1e-9, atol=1e-11)
        assert state.smooth_loss == pytest.approx(expected.smooth_loss, rel=1e-12)


# ---- Several shards, several streams


def plain_weights(definition: Definition, text: str, steps: int) -> list[reference.Weights]:
    """Every version of the weights, by a plain form of the rule.

    Step k takes the mean of all streams' gradients on weights k, and makes weights k + 1 of them.
    """
    vocabulary, ids = encode(text)
    length = len(ids) // definition.total_streams
    T, H = definition.seq_length, definition.hidden
    first = initialize(len(vocabulary), H, dtype="float64", seed=definition.seed)
    versions = [reference.double(first.named())]
    memory = {name: np.zeros_like(array) for name, array in versions[0].items()}
    hidden = [np.zeros(H) for _ in range(definition.total_streams)]
    where = reference.positions(length, T)
    for k, (p, fresh) in zip(range(steps), where, strict=False):
        used = versions[k]
        mean = {name: np.zeros_like(array) for name, array in used.items()}
        for number in range(definition.total_streams):
            data = ids[number * length : (number + 1) * length].tolist()
            h = np.zeros(H) if fresh else hidden[number]
            _, gradient, hidden[number] = reference.loss_fun(
                used, data[p : p + T], data[p + 1 : p + T + 1], h
            )
            for name in mean:
                mean[name] += gradient[name] / definition.total_streams
        weights = reference.double(versions[-1])
        rate = definition.learning_rate
        if k < definition.warmup:
            rate *= (k + 1) / definition.warmup
        reference.adagrad(weights, memory, mean, learning_rate=rate, clip=definition.clip)
        versions.append(weights)
    return versions


@pytest.mark.parametrize("warmup", [0, 25])
@pytest.mark.parametrize(("shards", "streams"), [(1, 1), (3, 1), (2, 2), (1, 3)])
def test_shards_and_streams_follow_a_plain_recomputation(
    shards: int, streams: int, warmup: int
) -> None:
    definition = definition_of(shards=shards, streams=streams, seed=7, warmup=warmup)
    states = run(definition, TEXT, 40)
    for state, weights in zip(states, plain_weights(definition, TEXT, 40), strict=True):
        assert_same_weights(state, weights)


def test_the_loss_is_the_mean_over_all_streams() -> None:
    definition = definition_of(shards=2, streams=3, hidden=4)
    _, streams = begin(definition, TEXT)
    before, after = run(definition, TEXT, 1)
    losses = [
        computed(before.parameters, streams.batch_at(shard, 0), before.hidden[shard])[0]
        for shard in range(2)
    ]
    expected = 0.999 * before.smooth_loss + 0.001 * (losses[0] + losses[1]) / 6
    assert after.smooth_loss == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shards", "warmup", "rate"), [(1, 0, 0.1), (3, 7, 0.1 * (5 / 7)), (5, 5, 0.1)]
)
def test_a_step_is_average_clip_and_adagrad_bit_for_bit(
    shards: int, warmup: int, rate: float, dtype: str
) -> None:
    definition = definition_of(
        shards=shards, streams=1, dtype=dtype, clip=0.05, learning_rate=0.1, warmup=warmup
    )
    _, streams = begin(definition, TEXT)
    *_, before, after = run(definition, TEXT, 5)
    results = [
        computed(before.parameters, streams.batch_at(shard, 4), before.hidden[shard])
        for shard in range(shards)
    ]
    total = specification.tree_sum([gradient.flat for _, gradient, _ in results])
    mean = specification.mean_and_clip(total, shards, definition.clip)
    weights, memory = specification.adagrad(before.parameters.flat, before.memory, mean, rate)
    assert after.parameters.flat.tobytes() == weights.tobytes()
    assert after.memory.tobytes() == memory.tobytes()
    assert after.hidden.tobytes() == np.stack([hidden for *_, hidden in results]).tobytes()


# ---- States


def test_the_first_state() -> None:
    definition = definition_of(shards=2, streams=3, hidden=4, dtype="float32", seed=9)
    state = start(definition, 11)
    initial = initialize(11, 4, dtype="float32", seed=9).flat
    assert state.step == 0
    assert state.parameters.flat.tobytes() == initial.tobytes()
    assert state.memory.shape == initial.shape
    assert state.hidden.shape == (2, 3, 4)
    assert state.memory.dtype == state.hidden.dtype == np.float32
    assert not state.memory.any()
    assert not state.hidden.any()
    assert state.smooth_loss == 5 * math.log(11)


def arrays_of(state: TrainingState) -> list[NDArray[Any]]:
    return [state.parameters.flat, state.memory, state.hidden]


def test_a_state_is_never_written_to_again() -> None:
    definition = definition_of(shards=2, streams=2)
    state, streams = begin(definition, TEXT)
    kernel = kernel_of(definition, state.parameters.vocabulary_size)
    history = []
    for _ in range(6):
        history.append((state, [array.tobytes() for array in arrays_of(state)]))
        for array in arrays_of(state):
            array.flags.writeable = False
        state = advance(state, definition, streams, kernel)
    for old, bytes_then in history:
        assert [array.tobytes() for array in arrays_of(old)] == bytes_then


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_keeps_its_dtype(dtype: str) -> None:
    states = run(definition_of(dtype=dtype, shards=2), TEXT, 3)
    assert {array.dtype for array in arrays_of(states[-1])} == {np.dtype(dtype)}


def test_the_same_definition_and_text_give_the_same_bytes() -> None:
    definition = definition_of(shards=3, streams=2, dtype="float32")
    one, two = (run(definition, TEXT, 20)[-1] for _ in range(2))
    assert weights_sha256(one.parameters) == weights_sha256(two.parameters)
    other = run(dataclasses.replace(definition, seed=1), TEXT, 20)[-1]
    assert weights_sha256(one.parameters) != weights_sha256(other.parameters)


# ---- One shard at one step


def test_where_the_text_starts_again_the_hidden_state_counts_as_zero() -> None:
    model = initialize(9, 4, dtype="float64")
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.uint8)
    stored = np.full((2, 4), 0.5)
    stored.flags.writeable = False
    fresh, continued, zero = (
        computed(model, Batch(ids, fresh=fresh), hidden)
        for fresh, hidden in ((True, stored), (False, stored), (False, np.zeros((2, 4))))
    )
    assert fresh[0] == zero[0] != continued[0]
    assert fresh[1].flat.tobytes() == zero[1].flat.tobytes() != continued[1].flat.tobytes()
    assert fresh[2].tobytes() == zero[2].tobytes() != continued[2].tobytes()


# ---- The hash that people compare


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_hash_is_over_the_five_arrays_in_order_little_endian(dtype: str) -> None:
    model = initialize(9, 4, dtype=dtype, seed=2)
    model.flat[-13:] = 0.25
    digest = hashlib.sha256()
    for name in reference.NAMES:
        digest.update(model.named()[name].astype("<" + dtype).tobytes())
    assert weights_sha256(model) == digest.hexdigest()
    assert weights_sha256(model.like(model.flat.astype(">" + dtype))) == digest.hexdigest()
