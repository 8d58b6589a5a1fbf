import numpy as np
import pytest

from manychar.numerics import adagrad, fused_update
from manychar.numerics.tree_reduction import clip, mean


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("blocks", [0.001, 0.5, 1.0, 2.0, 2.7])
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("shared_from", [fused_update.SHARED_FROM, 0])
def test_the_same_bits_as_the_pure_functions(
    monkeypatch: pytest.MonkeyPatch, shared_from: int, blocks: float, dtype: str, halves: int
) -> None:
    monkeypatch.setattr(fused_update, "SHARED_FROM", shared_from)
    size = max(1, int(blocks * fused_update.BLOCK_BYTES) // np.dtype(dtype).itemsize)
    generator = np.random.default_rng(size)
    weights = memory = np.zeros(size, dtype)
    pure_weights, pure_memory = weights, memory
    for _ in range(3):
        magnitude = 10.0 ** generator.uniform(-8, 3, size)
        total = (generator.standard_normal(size) * magnitude).astype(dtype)
        total[::5] = 0
        total[::7] *= -1
        other = generator.standard_normal(size).astype(dtype)
        parts = (total, other)[:halves]
        total = sum(parts[1:], start=parts[0])
        weights, memory = fused_update.update(
            weights, memory, parts, streams=48, clip=0.5, learning_rate=0.1
        )
        gradient = clip(mean(total, 48), 0.5)
        pure_weights, pure_memory = adagrad.update(pure_weights, pure_memory, gradient, 0.1)
        assert weights.tobytes() == pure_weights.tobytes()
        assert memory.tobytes() == pure_memory.tobytes()


def test_what_is_passed_in_is_not_modified() -> None:
    weights, memory, total = (np.full(5, value) for value in (1.0, 2.0, 3.0))
    for array in (weights, memory, total):
        array.flags.writeable = False
    new = fused_update.update(
        weights, memory, (total, total), streams=2, clip=5.0, learning_rate=0.1
    )
    assert not any(np.shares_memory(array, old) for array in new for old in (weights, memory))
