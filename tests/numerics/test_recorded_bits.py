"""Bits that an earlier version computed: with the same flags, this one computes the same."""

from typing import Any

import pytest

from manychar.numerics.run_definition import Definition
from manychar.processes.numeric_libraries import libraries
from tests.single_process import hashes_alone

TEXT = "she sells sea shells; he sells she-shells, she says. " * 40
RECORDED_WITH = {"numpy": "2.4.6", "blas": "scipy-openblas-0.3.31.188.0", "architecture": "x86_64"}
# Definition, steps, and the hash of the last checkpoint's state that a fleet of version 0.1.0
# (commit fc2e580) made of TEXT. It had no warm-up, 4 shards of 16 streams and the rate 0.1.
RECORDED: list[tuple[dict[str, Any], int, str]] = [
    (
        {"shards": 4, "streams": 16, "learning_rate": 0.1, "warmup": 0},
        40,
        "dd50c9ea55493f0f3ea38a8fe200cf37567ca7f89223ecd8c7da42574324c550",
    ),
    (
        {
            "shards": 5,
            "streams": 3,
            "hidden": 30,
            "seq_length": 13,
            "clip": 1,
            "seed": 7,
            "learning_rate": 0.05,
            "warmup": 0,
        },
        60,
        "1fdd1290e9a44cfe8de9a3bad14a3b75ff1c6a32128d81f9d71d036a4babc6a6",
    ),
    (
        {
            "shards": 2,
            "streams": 2,
            "hidden": 40,
            "dtype": "float64",
            "validation": 0.1,
            "learning_rate": 0.1,
            "warmup": 0,
        },
        60,
        "b97971c07f1e85a03ad791fcd07e7d5523221720fa2f5fc755733ff42e00a8c7",
    ),
    (  # one stream: the rate and no warm-up are its defaults
        {"shards": 1, "streams": 1, "hidden": 300},
        50,
        "54bdbc1c83f33a80956a19e8b783a1e0b9e8a55edf9c86d851a678eb6852d7df",
    ),
]


@pytest.mark.parametrize(("values", "steps", "sha256"), RECORDED)
def test_the_flags_of_version_0_1_0_give_its_bits(
    values: dict[str, Any], steps: int, sha256: str
) -> None:
    here = libraries()
    if not RECORDED_WITH.items() <= here.items():
        pytest.skip(f"recorded with {RECORDED_WITH}, this is {here}")
    definition = Definition(corpus_sha256="0" * 64, **values)
    assert hashes_alone(TEXT, definition.to_json(), steps)[steps] == sha256
