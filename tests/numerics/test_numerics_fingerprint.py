import re
from typing import Any

import numpy as np
import pytest

from manychar.numerics import numerics_fingerprint as module
from manychar.numerics.kernel import Kernel, no_progress
from manychar.numerics.model import count_parameters

LIBRARIES = {"numpy": "2.4.0", "blas": "OpenBLAS 0.3.30 Haswell"}


def fingerprint(**changed: Any) -> str:
    usual: dict[str, Any] = {
        "vocabulary_size": 11,
        "hidden_size": 6,
        "seq_length": 4,
        "streams": 3,
        "dtype": "float32",
        "libraries": LIBRARIES,
        "progress": no_progress,
    }
    shape = usual | changed
    libraries, progress = shape.pop("libraries"), shape.pop("progress")
    return module.fingerprint(Kernel(**shape), libraries, progress)


def test_the_same_in_gives_the_same_out() -> None:
    assert fingerprint() == fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", fingerprint())


def test_the_order_in_which_libraries_are_named_does_not_matter() -> None:
    assert fingerprint(libraries=dict(reversed(LIBRARIES.items()))) == fingerprint()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocabulary_size", 12),
        ("hidden_size", 7),
        ("seq_length", 5),
        ("streams", 4),
        ("dtype", "float64"),
        ("libraries", LIBRARIES | {"numpy": "2.4.1"}),
        ("libraries", {"numpy": "2.4.0"}),
        ("libraries", {}),
    ],
)
def test_another_shape_dtype_or_library_gives_another_fingerprint(name: str, value: Any) -> None:
    assert fingerprint(**{name: value}) != fingerprint()


@pytest.mark.parametrize("which", ["loss", "gradient", "hidden"])
def test_one_last_bit_of_the_arithmetic_counts(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Kernel.compute

    def one_bit_off(*arguments: Any) -> Any:
        loss, gradient, after = compute(*arguments)
        if which == "loss":
            loss = float(np.nextafter(loss, np.inf))
        else:
            array = gradient.flat if which == "gradient" else after.reshape(-1)
            array[-1] = np.nextafter(array[-1], np.float32(np.inf))
        return loss, gradient, after

    honest = fingerprint()
    monkeypatch.setattr(Kernel, "compute", one_bit_off)
    assert fingerprint() != honest


def test_the_probe_tells_of_its_progress_and_that_changes_no_bit() -> None:
    told: list[None] = []
    assert fingerprint(progress=lambda: told.append(None)) == fingerprint()
    assert len(told) >= 2 * 4


def test_the_weights_that_a_kernel_held_before_do_not_matter() -> None:
    kernel = Kernel(11, 6, seq_length=4, streams=3, dtype="float32")
    first = module.fingerprint(kernel, LIBRARIES)
    kernel.load(np.ones(count_parameters(11, 6)))
    assert module.fingerprint(kernel, LIBRARIES) == first == fingerprint()
