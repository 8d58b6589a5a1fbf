"""Checkpoints: one safetensors file holds what is needed to sample, and to resume.

Tensors `Wxh Whh Why bh by`, Adagrad's `mWxh … mby` and `hidden` (S, B, H); metadata `format step
smooth_loss smooth_loss_hex vocabulary config sha256`. The sha256 covers every tensor and all other
metadata, in whatever order a file has them.
"""

import dataclasses
import hashlib
import math
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from manychar.numerics.model import Parameters, shapes_of
from manychar.numerics.run_definition import (
    Definition,
    canonical_json,
)
from manychar.numerics.training_step import TrainingState
from manychar.processes.errors import UserError, because
from manychar.storage.atomic_files import open_regular, parsed, rename, temporary_name, write_file
from manychar.storage.canonical_safetensors import as_safetensors
from manychar.storage.file_format import FORMAT_VERSION, check_format

LARGEST_HEADER = 2**25  # every character there is, with its escapes
PARAMETER_NAMES = ("Wxh", "Whh", "Why", "bh", "by")
_NAME = re.compile(r"step-(\d{9,})\.safetensors")
_METADATA = {
    "format",
    "step",
    "smooth_loss",
    "smooth_loss_hex",
    "vocabulary",
    "config",
    "sha256",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds, checked."""

    definition: Definition
    vocabulary: str
    state: TrainingState
    sha256: str


def checkpoint_path(directory: Path, step: int) -> Path:
    """Return where a run directory's checkpoint of a step stands."""
    return directory / f"step-{step:09d}.safetensors"


def list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of a run's checkpoints, oldest first, by name only."""
    found = [
        (int(match[1]), path)
        for path in directory.glob("step-*.safetensors")
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found)


def tensors_of(state: TrainingState) -> dict[str, NDArray[Any]]:
    """Return the arrays of a state by the names they have in a file."""
    memory = state.parameters.like(state.memory)
    return {
        **state.parameters.named(),
        **{f"m{name}": view for name, view in memory.named().items()},
        "hidden": state.hidden,
    }


def write_checkpoint(
    path: Path, definition: Definition, vocabulary: str, state: TrainingState
) -> None:
    """Write a checkpoint atomically, and read it back before it has its name.

    Raises OSError where the disk will not have it, UserError or RuntimeError where what is read
    back is damaged or another one.
    """
    tensors = tensors_of(state)
    metadata = {
        "format": str(FORMAT_VERSION),
        "step": str(state.step),
        "smooth_loss": repr(state.smooth_loss),
        "smooth_loss_hex": state.smooth_loss.hex(),
        "vocabulary": vocabulary,
        "config": definition.to_json(),
    }
    metadata["sha256"] = _sha256(tensors, metadata)
    temporary = temporary_name(path)
    try:
        write_file(temporary, as_safetensors(tensors, metadata))
        if read_checkpoint(temporary).sha256 != metadata["sha256"]:
            raise RuntimeError(f"{path}: read back, the checkpoint is another one")
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint, checked. Raises UserError that names the file and the fault."""
    try:
        data = _read(path)
        tensors = safetensors.numpy.load(data)
        metadata = _metadata_of(data)
        if metadata.keys() != _METADATA or metadata["sha256"] != _sha256(tensors, metadata):
            raise ValueError("its sha256 is not that of its contents")
        return _checkpoint(tensors, metadata)
    except OSError as error:
        raise UserError(f"{path}: {because(error)}") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: truncated or not a checkpoint: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged or altered: {error}") from None


def stated_sha256(path: Path) -> str | None:
    """Return the sha256 that a checkpoint's header states; None where no header can be read."""
    try:
        with open_regular(path) as file:
            return _read_metadata(file)[0].get("sha256")
    except (OSError, ValueError, AttributeError):
        return None


def _read(path: Path) -> bytes:
    """Return the bytes of a file that is as long as its own configuration says.

    Only its header is read before that is known. Raises OSError, and ValueError and its like where
    it is no checkpoint.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        metadata, header = _read_metadata(file)
        check_format(path, int(metadata["format"]))
        definition = Definition.from_mapping(parsed(metadata["config"]))
        shapes = _shapes(definition, len(metadata["vocabulary"]))
        tensors = sum(map(math.prod, shapes.values())) * np.dtype(definition.dtype).itemsize
        if size != header + tensors:
            raise ValueError(f"{size:,} bytes, where {header + tensors:,} belong: truncated?")
        file.seek(0)
        return file.read(size)


def _read_metadata(file: BinaryIO) -> tuple[dict[str, str], int]:
    """Return a file's metadata and where its header ends."""
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(LARGEST_HEADER, os.fstat(file.fileno()).st_size - 8):
        raise ValueError("truncated, or not a checkpoint")
    return _metadata_of(length.to_bytes(8, "little") + file.read(length)), 8 + length


def _metadata_of(data: bytes) -> dict[str, str]:
    """Return the metadata: safetensors' header is 8 bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = parsed(data[8 : 8 + length]).get("__metadata__") or {}
    return metadata


def _sha256(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> str:
    hashed = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        hashed.update(canonical_json([name, array.dtype.name, list(array.shape)]).encode())
        hashed.update(np.ascontiguousarray(array).data)
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    hashed.update(canonical_json(rest).encode())
    return hashed.hexdigest()


def _checkpoint(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> Checkpoint:
    definition = Definition.from_mapping(parsed(metadata["config"]))
    vocabulary = metadata["vocabulary"]
    step, smooth_loss = int(metadata["step"]), float.fromhex(metadata["smooth_loss_hex"])
    if step < 0 or not math.isfinite(smooth_loss) or list(vocabulary) != sorted(set(vocabulary)):
        raise ValueError("its step, smooth loss or vocabulary is none")
    _check_tensors(tensors, definition, len(vocabulary))

    def flat(prefix: str) -> NDArray[Any]:
        return np.concatenate([tensors[prefix + name].reshape(-1) for name in PARAMETER_NAMES])

    state = TrainingState(
        step=step,
        parameters=Parameters(flat(""), len(vocabulary), definition.hidden),
        memory=flat("m"),
        hidden=tensors["hidden"],
        smooth_loss=smooth_loss,
    )
    return Checkpoint(definition, vocabulary, state, metadata["sha256"])


def _shapes(definition: Definition, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's tensors by name."""
    shapes = shapes_of(vocabulary_size, definition.hidden)
    return {
        **shapes,
        **{f"m{name}": shape for name, shape in shapes.items()},
        "hidden": (definition.shards, definition.streams, definition.hidden),
    }


def _check_tensors(
    tensors: dict[str, NDArray[Any]], definition: Definition, vocabulary_size: int
) -> None:
    expected = _shapes(definition, vocabulary_size)
    if {name: array.shape for name, array in tensors.items()} != expected:
        raise ValueError("its tensors are not those of its configuration")
    if any(array.dtype != np.dtype(definition.dtype) for array in tensors.values()):
        raise ValueError(f"its tensors are not all {definition.dtype}")
