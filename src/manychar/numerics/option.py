"""One declaration of an option: type, default, bounds, choices, help text and roles.

It is the metadata of a dataclass's field. Checks and their messages, command line, TOML file,
Python API, reference and the flags of child processes follow from it. It stands in this folder
because the definition of a run, which the numerics read, is declared with it.
"""

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

KEY = "option"
StrPath = str | os.PathLike[str]
TYPES: dict[Any, Any] = {bool: bool, int: Integral, float: Real, Path: str | os.PathLike}
"""What Python callers may give, by an option's type; a choice is a str, as a str is."""


class OptionError(ValueError):
    """A value that is not allowed; the command line prints the message like a UserError's."""


@dataclasses.dataclass(frozen=True, repr=False)
class Formula:
    """A default that is a pure function of other fields; its parameters are their names."""

    text: str
    function: Callable[..., Any]

    def __repr__(self) -> str:
        return self.text


# A field for each fact of an option: more fields than elsewhere, so that one declaration is enough.
@dataclasses.dataclass(frozen=True)
class Option:
    """The declaration of an option, apart from its type and default.

    `least` and `most` are allowed values, `above` and `below` are not. `roles` are the commands
    that have it as an option of a run. On the command line, `names` are its flags (else the
    field's name), `variable` is an environment variable that can give it, and `without` is shown
    instead of the default.
    """

    help: str
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    roles: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    variable: str | None = None
    without: str = ""
    hidden: bool = False

    def allowed_text(self, kind: Any) -> str:
        if get_origin(kind) is Literal:
            return " or ".join(get_args(kind))
        if kind is bool:
            return "true or false"
        if kind in (str, Path):
            return "str" if kind is str else "str or Path"
        finite = "finite " * (self.most == self.below == math.inf)
        number = "a whole number" if kind is int else f"a {finite}number"
        bounds = {"at least": self.least, "above": self.above}
        bounds |= {"at most": self.most, "below": self.below}
        words = (f"{word} {bound:,}" for word, bound in bounds.items() if math.isfinite(bound))
        return f"{number} {' and '.join(words)}".rstrip()

    def allows(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below


def without_none(kind: Any) -> Any:
    """Return an option's type without None, and Path for a path's."""
    if kind == StrPath | None:
        return Path
    if get_origin(kind) is Literal or isinstance(kind, type):
        return kind
    return next(each for each in get_args(kind) if each is not type(None))


def option(default: Any, text: str, *, roles: tuple[str, ...], **known: Any) -> Any:
    """Return a dataclass field with this default, which may be a Formula, and metadata."""
    return dataclasses.field(default=default, metadata={KEY: Option(text, roles=roles, **known)})


def options_of(
    *classes: Any, role: str | None = None
) -> dict[str, tuple[dataclasses.Field[Any], Option]]:
    """Return the fields of dataclasses that are options, by name: all, or those of a role."""
    fields = (field for each in classes for field in dataclasses.fields(each))
    found = ((field, field.metadata[KEY]) for field in fields if KEY in field.metadata)
    return {field.name: (field, option) for field, option in found if role in (None, *option.roles)}


def resolve(cls: Any, given: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """Return the value of each option of a dataclass: the given one, or its default.

    A formula reads fields of the class, and the values of `others`. Raises OptionError where
    there is no value for one of its parameters.
    """
    values = {name: given.get(name, field.default) for name, (field, _) in options_of(cls).items()}
    for name, value in values.items():
        if isinstance(value, Formula):
            known = {**others, **values}
            parameters = inspect.signature(value.function).parameters
            if not parameters.keys() <= known.keys():
                raise OptionError(f"{flag(name)}: give it; its default is {value.text}")
            values[name] = value.function(**{each: known[each] for each in parameters})
    return values


def check(instance: Any) -> None:
    """Resolve and check the options of a frozen dataclass. Raises OptionError."""
    values = resolve(type(instance), vars(instance))
    for name, (field, option) in options_of(type(instance)).items():
        object.__setattr__(instance, name, checked(name, values[name], field.type, option))


def checked(name: str, value: Any, kind: Any, option: Option) -> Any:
    """Return an option's value as its type has it, so that equal values are one text."""
    if kind is float and type(value) in (int, float):
        try:
            value = float(value) + 0.0  # -0.0 becomes 0.0
        except OverflowError:
            raise OptionError(f"{flag(name)} is too large a number") from None
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    fits = value in choices if choices else type(value) is kind
    if not fits or (type(value) in (int, float) and not option.allows(value)):
        raise OptionError(f"{flag(name)} is {value!r}; allowed: {option.allowed_text(kind)}")
    return value


def check_types(values: Mapping[str, Any], *classes: Any) -> None:
    """Raise TypeError where a value is not of its option's type; None is one that is not given.

    The options are those of these dataclasses; any other is a whole number.
    """
    known = {name: (without_none(f.type), each) for name, (f, each) in options_of(*classes).items()}
    for name, value in values.items():
        kind, option = known.get(name, (int, Option("")))
        fits = isinstance(value, TYPES.get(kind, str)) and isinstance(value, bool) <= (kind is bool)
        if not (value is None or fits):
            raise TypeError(f"{name} is {value!r:.40}; allowed: {option.allowed_text(kind)}")


def flag(name: str) -> str:
    """Return a field's name as a flag."""
    return "--" + name.replace("_", "-")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as messages have it."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return values as words of a command line, without None and False. Raises TypeError."""
    words = []
    for name, value in values.items():
        plain = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(plain, str | int | Real | None):
            raise TypeError(f"{name} is {plain!r:.40}; allowed: str, number or Path")
        if plain is not None and plain is not False:
            words.append(flag(name) if plain is True else f"{flag(name)}={plain}")
    return words
