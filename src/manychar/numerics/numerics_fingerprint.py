"""The numerics fingerprint: equal fingerprints, equal bits.

A hash of the gradient of a fixed probe in the run's own shapes and dtype, and of the names of the
libraries that computed it. The probe alone would be a sample; the names alone would be a promise.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from manychar.numerics.kernel import loss_and_gradient, nothing
from manychar.numerics.model import Parameters, count_parameters
from manychar.numerics.run_definition import canonical_json


def fingerprint(
    *,
    vocabulary_size: int,
    hidden_size: int,
    seq_length: int,
    streams: int,
    dtype: str,
    libraries: Mapping[str, str],
    progress: Callable[[], None] = nothing,
) -> str:
    """Return 64 hexadecimal digits for these shapes, this dtype and these versions and builds.

    `progress` is called between the pieces of the probe's work, as in `loss_and_gradient`.
    """
    generator = np.random.default_rng(0)
    size = count_parameters(vocabulary_size, hidden_size)
    flat = (0.2 * (generator.random(size) - 0.5)).astype(dtype)
    ids = generator.integers(vocabulary_size, size=(streams, seq_length + 1))
    hidden = (generator.random((streams, hidden_size)) - 0.5).astype(dtype)
    parameters = Parameters(flat, vocabulary_size, hidden_size)
    loss, gradient, after = loss_and_gradient(parameters, ids[:, :-1], ids[:, 1:], hidden, progress)
    digest = hashlib.sha256(canonical_json(dict(libraries)).encode())
    digest.update(gradient.flat.tobytes() + after.tobytes() + loss.hex().encode())
    return digest.hexdigest()
