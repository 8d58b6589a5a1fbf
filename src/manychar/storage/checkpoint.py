"""Checkpoints: one safetensors file holds what is needed to sample and to resume.

Tensors `Wxh Whh Why bh by`, Adagrad's `mWxh … mby` and `hidden` (S, B, H); metadata `format step
smooth_loss vocabulary config sha256`. The sha256 covers every tensor and all other
metadata, in whatever order a file has them.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from manychar.numerics.model import Parameters, shapes_of
from manychar.numerics.run_definition import Definition, canonical_json
from manychar.numerics.training_step import TrainingState
from manychar.processes.errors import UserError, user_errors
from manychar.storage.atomic_files import replacing, write_file
from manychar.storage.canonical_safetensors import as_safetensors, header_of
from manychar.storage.file_format import FORMAT_VERSION, check_format, fault_of

_INSTEAD = "give RUN, or a file of RUN/checkpoints"
NO_CHECKPOINT = f"a state dict, as `manychar export` writes it, not a checkpoint: {_INSTEAD}"
_NAME = re.compile(r"step-(\d{9,})\.safetensors")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds, checked."""

    definition: Definition
    vocabulary: str
    state: TrainingState
    sha256: str


def checkpoint_path(directory: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return directory / f"step-{step:09d}.safetensors"


def list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of a run's checkpoints, oldest first, by name only."""
    paths = directory.glob("step-*.safetensors")
    return sorted((int(match[1]), p) for p in paths if (match := _NAME.fullmatch(p.name)))


def tensors_of(state: TrainingState) -> dict[str, NDArray[Any]]:
    """Return the arrays of a state by the names they have in a file."""
    memory = {f"m{k}": view for k, view in state.parameters.like(state.memory).named().items()}
    return {**state.parameters.named(), **memory, "hidden": state.hidden}


def write_checkpoint(
    path: Path, definition: Definition, vocabulary: str, state: TrainingState
) -> None:
    """Write a checkpoint atomically, and read it back before it has its name.

    Raises OSError where it cannot be written, UserError or RuntimeError where what is read
    back is damaged or differs.
    """
    tensors = tensors_of(state)
    metadata = {
        "format": str(FORMAT_VERSION),
        "step": str(state.step),
        "smooth_loss": repr(state.smooth_loss),
        "vocabulary": vocabulary,
        "config": definition.to_json(),
    }
    metadata["sha256"] = _sha256(tensors, metadata)
    with replacing(path) as temporary:
        write_file(temporary, [as_safetensors(tensors, metadata)])
        if read_checkpoint(temporary).sha256 != metadata["sha256"]:
            raise RuntimeError(f"{path}: the checkpoint read back differs from the one written")


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint, checked. Raises UserError that names the file and the fault."""
    with user_errors(path):
        data = path.read_bytes()
    try:
        tensors = safetensors.numpy.load(data)
        metadata: dict[str, str] = header_of(data)[0].get("__metadata__", {})
        if "step" not in metadata:
            raise UserError(f"{path}: {NO_CHECKPOINT}")
        check_format(path, int(metadata["format"]))
        if metadata["sha256"] != _sha256(tensors, metadata):
            raise ValueError("its sha256 is not that of its contents")
        return _checkpoint(tensors, metadata)
    except safetensors.SafetensorError:
        advice = "" if path.suffix == ".safetensors" else f": {_INSTEAD}"  # the name of one
        raise UserError(f"{path}: truncated, altered or not a checkpoint{advice}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged or altered: {fault_of(error)}") from None


def stated_metadata(path: Path) -> dict[str, str]:
    """Return a checkpoint's metadata unchecked; none where no header can be read."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return {}


def _sha256(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> str:
    hashed = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        hashed.update(canonical_json([name, array.dtype.name, list(array.shape)]).encode())
        hashed.update(np.ascontiguousarray(array).data)
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    hashed.update(canonical_json(rest).encode())
    return hashed.hexdigest()


def _checkpoint(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> Checkpoint:
    definition = Definition.from_mapping(json.loads(metadata["config"]))
    vocabulary = metadata["vocabulary"]

    def flat(prefix: str) -> NDArray[Any]:
        names = shapes_of(len(vocabulary), definition.hidden)
        return np.concatenate([tensors[prefix + name].reshape(-1) for name in names])

    state = TrainingState(
        step=int(metadata["step"]),
        parameters=Parameters(flat(""), len(vocabulary), definition.hidden),
        memory=flat("m"),
        hidden=tensors["hidden"],
        smooth_loss=float(metadata["smooth_loss"]),
    )
    return Checkpoint(definition, vocabulary, state, metadata["sha256"])
