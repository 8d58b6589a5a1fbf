"""What the recipes in deploy/ start: their YAML, and their own command lines, run here for real."""

import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.commands import SMALL, Commands, Running

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
KEY_FILE = "MANYCHAR_KEY_FILE"


def files_of(directory: Path) -> list[Path]:
    """Return all files below a directory."""
    return [path for path in directory.rglob("*") if path.is_file()]


def documents(text: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML text."""
    return [document for document in yaml.safe_load_all(text) if document]


def flag(arguments: Sequence[str], name: str) -> str:
    """Return the value of a flag that is written as --name=value."""
    (value,) = [word.split("=", 1)[1] for word in arguments if word.startswith(f"--{name}=")]
    return value


def moved(words: Sequence[str], places: Mapping[str, Path]) -> list[str]:
    """Return a container's words with its directories at other places."""
    at = re.compile("|".join(rf"(?<![\w/.-]){re.escape(place)}(?![\w-])" for place in places))
    return [at.sub(lambda match: str(places[match[0]]), word) for word in words]


def shell(words: Sequence[str], places: Mapping[str, Path], **options: Any) -> None:
    """Run a container's command that prepares something, with this program in its PATH."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(moved(words, places), env={"PATH": path}, check=True, **options)


class Recipe:
    """A recipe's server and workers, with their own arguments, on this machine.

    `places` says where the directories of its containers are here; the port is a free one, and the
    model and the number of steps are small.
    """

    def __init__(
        self,
        manychar: Commands,
        *,
        server: Sequence[str],
        workers: Sequence[Sequence[str]],
        places: Mapping[str, Path],
        worker_key: Path,
    ) -> None:
        self._manychar = manychar
        self._server = moved(server, places)
        self._workers = workers
        self._key = {KEY_FILE: str(worker_key)}
        self._endpoint = "tcp://127.0.0.1:0"
        self.server: Running
        self.workers: list[Running] = []

    def start(self) -> None:
        """Start the server and its workers as the recipe does, but endless; wait for the workers.

        A short run might end before all of them have joined it.
        """
        bind = f"--bind={self._endpoint}"
        arguments = [
            "--steps=0"
            if word.startswith("--steps=")
            else bind
            if word.startswith("--bind=")
            else word
            for word in self._server
        ]
        self.server = self._manychar.start(*arguments, *SMALL, "--sample-every=0")
        self._endpoint = self.server.wait_for(r"manychar worker (tcp://\S+) --key FILE")[1]
        self._endpoint = re.sub("//.*:", "//127.0.0.1:", self._endpoint)
        self.workers = [
            self._manychar.start(
                *(re.sub(r"^tcp://.*", self._endpoint, word) for word in words), env=self._key
            )
            for words in self._workers
        ]
        for words in self._workers:
            self.server.wait_for(f"{flag(words, 'name')} has joined")

    def health(self, probe: Sequence[str], key: Path) -> tuple[int, str]:
        """Run the recipe's own probe; return its exit code and what it says."""
        assert probe[0] == "manychar"
        words = [re.sub(r"^tcp://.*", self._endpoint, word) for word in probe[1:]]
        done = self._manychar.run(*words, env={KEY_FILE: str(key)})
        return done.code, done.out + done.err

    def stop(self) -> tuple[int, list[int]]:
        """Stop the server as an engine does; return its exit code and the workers'."""
        self.server.send(signal.SIGTERM)
        return self._end()

    def interrupt(self) -> tuple[int, list[int]]:
        """End an endless run by Ctrl-C; return the server's exit code and the workers'."""
        self.server.send(signal.SIGINT)
        return self._end()

    def _end(self) -> tuple[int, list[int]]:
        """Wait for the end of all; return the server's exit code and the workers'."""
        return self.server.end().code, [worker.end().code for worker in self.workers]
