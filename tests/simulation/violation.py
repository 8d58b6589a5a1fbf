"""What a run is stopped with that broke an invariant."""


class Violation(AssertionError):  # noqa: N818 - what it is, not what it is to Python
    """A run that broke an invariant; `invariant` is its short name."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
