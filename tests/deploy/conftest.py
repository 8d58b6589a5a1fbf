"""The recipes are run by the same means as every other command."""

from tests.runtime.conftest import manychar, text

__all__ = ["manychar", "text"]
