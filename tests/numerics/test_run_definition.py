import dataclasses
import json
import math
import re
from typing import Any

import pytest

from manychar.numerics.option import OptionError
from manychar.numerics.run_definition import Definition, canonical_json

SHA256 = "ab" * 32
USUAL = Definition(corpus_sha256=SHA256)

OTHER: dict[str, Any] = {
    "corpus_sha256": "cd" * 32,
    "initial_weights": "ef" * 32,
    "hidden": 64,
    "seq_length": 50,
    "learning_rate": 0.05,
    "warmup": 30,
    "clip": 1.0,
    "shards": 8,
    "streams": 2,
    "dtype": "float64",
    "seed": 2**53,
    "numerics": "native",
    "validation": 0.1,
}

BAD: dict[str, list[Any]] = {
    "hidden": [0, -1, 65_537, 1.0, "100", True, None],
    "seq_length": [0, -1, 65_537, 25.0, "25", True, None],
    "shards": [0, -1, 65_537, 4.0, "4", True, None],
    "streams": [0, -1, 65_537, 4.0, "4", True, None],
    "seed": [-1, 2**53 + 1, 0.0, "0", False, None],
    "learning_rate": [0, 0.0, -0.1, math.inf, math.nan, "0.1", True, None],
    "warmup": [-1, 2**53 + 1, 1.0, "1", True, None],
    "clip": [0, 0.0, -5.0, math.inf, math.nan, "5", True, None],
    "validation": [-0.1, 1, 1.0, math.inf, math.nan, "0", False, None],
    "dtype": ["float16", "", None, 32, []],
    "numerics": ["fast", "", None, {}],
}


@pytest.mark.parametrize("name", ["learning_rate", "clip"])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1e39, "float32"), (1e-39, "float32"), (1e308, "float64"), (1e-310, "float64")],
)
def test_what_the_dtype_cannot_hold_is_refused(name: str, value: float, dtype: str) -> None:
    changed: dict[str, Any] = {name: value, "dtype": dtype}
    with pytest.raises(OptionError) as refused:
        dataclasses.replace(USUAL, **changed)
    assert str(refused.value).startswith(f"--{name.replace('_', '-')} is {value!r}; allowed: ")
    assert str(refused.value).endswith(dtype)
    dataclasses.replace(USUAL, **changed | {name: math.sqrt(value)})


def values_of(definition: Definition) -> dict[str, Any]:
    return dataclasses.asdict(definition)


def test_defaults_are_min_char_rnns() -> None:
    assert (USUAL.hidden, USUAL.seq_length, USUAL.learning_rate, USUAL.clip) == (100, 25, 0.1, 5.0)
    assert (USUAL.seed, USUAL.validation) == (0, 0.0)


@pytest.mark.parametrize("changed", [{}, OTHER, {"learning_rate": 0.1 + 0.2, "clip": 2.0**-126}])
def test_a_definition_comes_back_from_json(changed: dict[str, Any]) -> None:
    definition = dataclasses.replace(USUAL, **changed)
    again = Definition.from_mapping(json.loads(definition.to_json()))
    assert again == definition
    assert again.to_json() == definition.to_json()


def test_the_canonical_json_of_a_definition_does_not_change() -> None:
    assert USUAL.to_json() == (
        '{"clip":5.0,"corpus_sha256":"' + SHA256 + '","dtype":"float32",'
        '"hidden":100,"initial_weights":null,"learning_rate":0.1,"numerics":"portable","seed":0,"seq_length":25,'
        '"shards":4,"streams":16,"validation":0.0,"warmup":100}'
    )


@pytest.mark.parametrize(
    ("values", "streams", "rate", "warmup"),
    [
        ({"hidden": 64}, 16, 0.1, 100),
        ({"hidden": 100}, 16, 0.1, 100),
        ({"hidden": 255}, 16, 0.1 * (100 / 255) ** 0.75, 255),
        ({"hidden": 256}, 8, 0.1 * 0.625**1.5, 256),
        ({"hidden": 512, "shards": 7}, 4, 0.1 * (100 / 512) ** 0.75, 400),
        ({"hidden": 1024}, 8, 0.1 * (100 / 1024 * 512 / 1024) ** 0.75, 400),
        ({"hidden": 5120}, 8, 0.1 * (100 / 5120 / 10) ** 0.75, 400),
        ({"shards": 1}, 64, 0.1, 100),
        ({"shards": 100}, 1, 0.1, 100),
        ({"hidden": 400, "learning_rate": 0.1, "warmup": 0, "streams": 2}, 2, 0.1, 0),
        ({"hidden": 400, "shards": 1, "streams": 1}, 1, 0.1, 0),
    ],
)
def test_the_recipe_follows_the_sizes_unless_it_is_given(
    values: dict[str, Any], streams: int, rate: float, warmup: int
) -> None:
    definition = Definition(corpus_sha256=SHA256, **values)
    assert definition.learning_rate == pytest.approx(rate, rel=1e-15)
    assert (definition.streams, definition.warmup) == (streams, warmup)
    again = Definition.from_mapping(json.loads(definition.to_json()))
    assert again == definition


@pytest.mark.parametrize(("step", "rate"), [(0, 0.02), (3, 0.08), (4, 0.1), (5, 0.1), (9_999, 0.1)])
def test_the_learning_rate_rises_to_its_value(step: int, rate: float) -> None:
    definition = Definition(corpus_sha256=SHA256, learning_rate=0.1, warmup=5)
    assert definition.learning_rate_at(step) == pytest.approx(rate, rel=1e-15)


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": [1, 0.1], "a": "é"}) == canonical_json({"a": "é", "b": [1, 0.1]})
    assert canonical_json({"b": 1, "a": {"d": 2, "c": 3}}) == '{"a":{"c":3,"d":2},"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(math.nan)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_bad_value_is_refused_by_the_name_of_its_flag(name: str, value: Any) -> None:
    flag = name if name == "validation" else "--" + name.replace("_", "-")
    match = rf"{flag}\b.* {re.escape(repr(value))}"
    with pytest.raises(OptionError, match=match):
        dataclasses.replace(USUAL, **{name: value})
    with pytest.raises(OptionError, match=match):
        Definition.from_mapping(values_of(USUAL) | {name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("hidden", 1), ("hidden", 65_536), ("validation", 0), ("clip", 1)]
)
def test_values_at_the_limits_are_taken(name: str, value: Any) -> None:
    assert getattr(dataclasses.replace(USUAL, **{name: value}), name) == value


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Definition)])
def test_a_missing_key_is_named(name: str) -> None:
    values = values_of(USUAL)
    del values[name]
    with pytest.raises(OptionError, match=name):
        Definition.from_mapping(values)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(OptionError, match=r"definition: momentum, workers$"):
        Definition.from_mapping(values_of(USUAL) | {"workers": 4, "momentum": 0.9})


def test_the_run_id_is_a_function_of_definition_and_nonce() -> None:
    assert USUAL.run_id("x1") == Definition(corpus_sha256=SHA256).run_id("x1")
    assert USUAL.run_id("x1") != USUAL.run_id("x2")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Definition)])
def test_the_run_id_depends_on_every_field(name: str) -> None:
    changed = dataclasses.replace(USUAL, **{name: OTHER[name]})
    assert changed != USUAL
    assert changed.run_id("x1") != USUAL.run_id("x1")


def test_products_of_the_sizes() -> None:
    assert USUAL.total_streams == 4 * 16
    assert USUAL.characters_per_step == 4 * 16 * 25
