import dataclasses
import math
from typing import Any, Literal

import pytest

from manychar.numerics.option import Formula, OptionError, as_flags, check, option, resolve


def square(width: int) -> int:
    return width * width


def lanes_of(width: int, cores: int) -> int:
    return min(width, cores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    width: int = option(4, "Width.", roles=("train",), least=1, most=2_000)
    share: float = option(0.5, "Share.", roles=("train",), least=0, below=1)
    wait: float = option(1.0, "Time limit.", roles=("train",), above=0)
    mode: Literal["fast", "exact"] = option("exact", "Mode.", roles=("train",))
    loud: bool = option(default=False, text="Loud.", roles=("train",))
    area: int = option(Formula("width * width", square), "Area.", roles=("train",))
    note: str = "no option"

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    lanes: int = option(Formula("min(width, cores)", lanes_of), "Lanes.", roles=("train",))


def test_a_formula_is_resolved_once_and_an_explicit_value_goes_before_it() -> None:
    assert Sizes(width=5).area == 25
    assert Sizes(width=5, area=3).area == 3
    assert dataclasses.replace(Sizes(width=5), width=6).area == 25


def test_a_formula_reads_what_is_known_beside_the_fields() -> None:
    assert resolve(Operation, {}, width=8, cores=2) == {"lanes": 2}
    assert resolve(Operation, {"lanes": 7, "other": 1}, width=8, cores=2) == {"lanes": 7}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, "--width is 0; allowed: a whole number at least 1 and at most 2,000"),
        ({"width": True}, "--width is True; allowed: a whole number at least 1 and at most 2,000"),
        ({"width": 1.0}, "--width is 1.0; allowed: a whole number at least 1 and at most 2,000"),
        ({"share": 1}, "--share is 1.0; allowed: a number at least 0 and below 1"),
        ({"wait": math.inf}, "--wait is inf; allowed: a finite number above 0"),
        ({"wait": math.nan}, "--wait is nan; allowed: a finite number above 0"),
        ({"wait": 10**400}, "--wait is too large a number"),
        ({"mode": "slow"}, "--mode is 'slow'; allowed: fast or exact"),
        ({"loud": 1}, "--loud is 1; allowed: true or false"),
    ],
)
def test_a_refusal_names_flag_value_and_what_it_takes(values: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Sizes(**values)
    assert str(caught.value) == message


def test_equal_numbers_are_one_value() -> None:
    assert repr(Sizes(share=-0.0, wait=2)) == repr(Sizes(share=0, wait=2.0))


def test_values_as_flags() -> None:
    values = {"width": 5, "run_dir": None, "loud": False, "or_resume": True}
    assert as_flags(values) == ["--width=5", "--or-resume"]
