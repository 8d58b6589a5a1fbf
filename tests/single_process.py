"""A run's bits as one process computes them: the oracle of the fleets. Run as a program, or ask.

The program is a process of its own, because the numerics are pinned before numpy is imported.
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manychar.numerics.training_step import TrainingState


def bits_of(state: "TrainingState") -> str:
    """Return a hash of all of a state: weights, memory, hidden states, versions, smooth loss."""
    from manychar.storage.checkpoint import tensors_of  # noqa: PLC0415 - after the pinning

    digest = hashlib.sha256(f"{state.step} {state.smooth_loss.hex()}".encode())
    for name, array in sorted(tensors_of(state).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def bits_alone(text: Path, run: Path, steps: int) -> list[str]:
    """Return the hashes of states 0 … steps of the run's definition on a text."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return hashes_alone(text.read_text(encoding="utf-8"), json.dumps(config["definition"]), steps)


@functools.cache
def hashes_alone(text: str, definition: str, steps: int) -> list[str]:
    """Return the hashes of states 0 … steps of a definition, given as JSON, on a text."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS", "NPY_"))}
    asked = json.dumps({"text": text, "definition": json.loads(definition), "steps": steps})
    command, root = [sys.executable, "-m", "tests.single_process"], Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, input=asked, env=env, capture_output=True, text=True, check=True
    )
    hashes: list[str] = json.loads(done.stdout)
    return hashes


def _main() -> None:
    from manychar.processes.numerics_pinning import pin  # noqa: PLC0415

    asked = json.load(sys.stdin)
    pin(asked["definition"]["numerics"])
    from manychar.numerics.corpus import Streams  # noqa: PLC0415
    from manychar.numerics.run_definition import Definition  # noqa: PLC0415
    from manychar.numerics.training_step import advance, kernel_of, start  # noqa: PLC0415
    from tests.encoding import encode  # noqa: PLC0415

    definition = Definition.from_mapping(asked["definition"])
    vocabulary, ids = encode(asked["text"])
    shape = (definition.shards, definition.streams, definition.seq_length)
    streams = Streams(ids, *shape, definition.validation)
    state, kernel = start(definition, len(vocabulary)), kernel_of(definition, len(vocabulary))
    hashes = [bits_of(state)]
    for _ in range(asked["steps"]):
        state = advance(state, definition, streams, kernel)
        hashes.append(bits_of(state))
    json.dump(hashes, sys.stdout)


if __name__ == "__main__":
    _main()
