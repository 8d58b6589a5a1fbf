"""The recipes are run by the same means as every other command."""

from tests.runtime.conftest import manychar

__all__ = ["manychar"]
