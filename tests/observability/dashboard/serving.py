"""Starts the page as a user does."""

from tests.commands import Commands, Running


def serve(manychar: Commands, source: str, *more: str) -> tuple[str, Running]:
    """Return the address of a run's page, and its process."""
    running = manychar.start("dashboard", source, "--port", "0", *more)
    return running.wait_for(r"http://\S+", "out")[0], running
