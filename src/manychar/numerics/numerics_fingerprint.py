"""The numerics fingerprint: equal fingerprints, equal bits.

A hash of the gradient of a fixed probe in the run's own shapes and dtype, and of the names of the
libraries that computed it. The probe alone would be a sample; the names alone would be a promise.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from manychar.numerics.kernel import Kernel, no_progress
from manychar.numerics.model import count_parameters
from manychar.numerics.run_definition import canonical_json


def fingerprint(
    kernel: Kernel, libraries: Mapping[str, str], progress: Callable[[], None] = no_progress
) -> str:
    """Return 64 hexadecimal digits for the kernel's shapes and dtype, and these libraries.

    The kernel is left with the probe's weights; `progress` is as in `Kernel.compute`.
    """
    generator = np.random.default_rng(0)
    size = count_parameters(kernel.vocabulary_size, kernel.hidden_size)
    kernel.load((0.2 * (generator.random(size) - 0.5)).astype(kernel.dtype))
    shape = (kernel.streams, kernel.seq_length + 1)
    ids = generator.integers(kernel.vocabulary_size, size=shape)
    hidden = (generator.random((kernel.streams, kernel.hidden_size)) - 0.5).astype(kernel.dtype)
    loss, gradient, after = kernel.compute(ids[:, :-1], ids[:, 1:], hidden, progress)
    digest = hashlib.sha256(canonical_json(dict(libraries)).encode())
    digest.update(gradient.flat.tobytes() + after.tobytes() + loss.hex().encode())
    return digest.hexdigest()
