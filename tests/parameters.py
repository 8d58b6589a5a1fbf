"""Parameters of slow tests, of which the ordinary run takes the first ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def others_long(values: Iterable[Any], *, ordinary: int = 1) -> list[Any]:
    """Return the values, those after the first `ordinary` ones marked long."""
    each = list(values)
    return [*each[:ordinary], *(pytest.param(v, marks=pytest.mark.long) for v in each[ordinary:])]
