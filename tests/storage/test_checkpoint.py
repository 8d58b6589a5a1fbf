"""Checkpoints: written whole or not at all, read back to the bit, and no alteration unnoticed."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from manychar.numerics.model import Parameters, count_parameters
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import TrainingState
from manychar.processes.errors import UserError
from manychar.storage import atomic_files, checkpoint
from manychar.storage.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    tensors_of,
    write_checkpoint,
)
from tests.single_process import bits_of

VOCABULARY = "\n \"'\\aé中🜁"
DTYPES: list[Literal["float32", "float64"]] = ["float32", "float64"]


def a_definition(dtype: Literal["float32", "float64"] = "float32") -> Definition:
    return Definition(
        corpus_sha256="0" * 64, hidden=3, seq_length=2, shards=2, streams=1, dtype=dtype
    )


def a_state(definition: Definition, step: int = 12, vocabulary: str = VOCABULARY) -> TrainingState:
    """Return a state with a different number in every place, and some odd ones."""
    size = count_parameters(len(vocabulary), definition.hidden)
    generator = np.random.default_rng(step)

    def vector() -> NDArray[Any]:
        drawn: NDArray[Any] = generator.standard_normal(size).astype(definition.dtype)
        drawn[:4] = [-0.0, np.finfo(definition.dtype).tiny / 8, np.finfo(definition.dtype).max, 0]
        return drawn

    shape = (definition.shards, definition.streams, definition.hidden)
    return TrainingState(
        step=step,
        parameters=Parameters(vector(), len(vocabulary), definition.hidden),
        memory=vector(),
        hidden=generator.standard_normal(shape).astype(definition.dtype),
        smooth_loss=0.1 + 0.2,
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A checkpoint file."""
    definition = a_definition()
    path = checkpoint_path(tmp_path, 12)
    write_checkpoint(path, definition, VOCABULARY, a_state(definition))
    return path


def rewritten(path: Path, tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


def raw(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return (tensors, metadata) as any reader of the format sees them."""
    with safetensors.safe_open(str(path), framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata())


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("vocabulary", [VOCABULARY, "a", "\x00\x7f\u2028\U0010ffff"])
    def test_to_the_bit(
        self, tmp_path: Path, dtype: Literal["float32", "float64"], vocabulary: str
    ) -> None:
        definition = a_definition(dtype)
        state = a_state(definition, vocabulary=vocabulary)
        path = checkpoint_path(tmp_path, state.step)
        write_checkpoint(path, definition, vocabulary, state)
        found = read_checkpoint(path)
        assert found.definition == definition
        assert found.vocabulary == vocabulary
        assert bits_of(found.state) == bits_of(state)
        assert found.state.parameters.flat.dtype == np.dtype(dtype)
        assert [path.name for path in tmp_path.iterdir()] == [path.name]

    def test_what_stands_in_the_file(self, written: Path) -> None:
        tensors, metadata = raw(written)
        names = {"Wxh", "Whh", "Why", "bh", "by"}
        assert tensors.keys() == names | {f"m{n}" for n in names} | {"hidden"}
        V, H = len(VOCABULARY), 3
        shapes = {name: tensors[name].shape for name in names}
        assert shapes == {"Wxh": (H, V), "Whh": (H, H), "Why": (V, H), "bh": (H,), "by": (V,)}
        assert tensors["hidden"].shape == (2, 1, H)
        assert metadata["step"] == "12"
        assert metadata["vocabulary"] == VOCABULARY
        assert float(metadata["smooth_loss"]) == 0.1 + 0.2
        assert Definition.from_mapping(json.loads(metadata["config"])) == a_definition()

    @pytest.mark.parametrize("odd", ["fortran", "strided", "reversed"])
    def test_arrays_of_any_layout(
        self, tmp_path: Path, odd: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def laid_out(array: NDArray[Any]) -> NDArray[Any]:
            if odd == "fortran":
                return np.asfortranarray(array)
            if odd == "strided":
                wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
                wide[..., ::2] = array
                return wide[..., ::2]
            return array[..., ::-1].copy()[..., ::-1]

        definition = a_definition()
        state = a_state(definition)
        oddly = {name: laid_out(array) for name, array in tensors_of(state).items()}
        assert not oddly["Wxh"].flags.c_contiguous
        path = checkpoint_path(tmp_path, 12)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "tensors_of", lambda _: oddly)
            write_checkpoint(path, definition, VOCABULARY, state)
        assert bits_of(read_checkpoint(path).state) == bits_of(state)

    def test_a_hidden_state_of_any_layout(self, tmp_path: Path) -> None:
        definition = a_definition()
        state = a_state(definition)
        oddly = dataclasses.replace(state, hidden=np.asfortranarray(state.hidden))
        write_checkpoint(tmp_path / "odd", definition, VOCABULARY, oddly)
        assert bits_of(read_checkpoint(tmp_path / "odd").state) == bits_of(state)

    def test_equal_contents_are_equal_files(self, tmp_path: Path) -> None:
        definition = a_definition()
        files = [tmp_path / str(i) for i in range(8)]
        for file in files:
            write_checkpoint(file, definition, VOCABULARY, a_state(definition))
        assert len({file.read_bytes() for file in files}) == 1

    def test_equal_contents_have_equal_hashes(self, tmp_path: Path) -> None:
        definition = a_definition()
        for name in ("one", "two"):
            write_checkpoint(tmp_path / name, definition, VOCABULARY, a_state(definition))
        other = dataclasses.replace(a_state(definition), step=13)
        write_checkpoint(tmp_path / "other", definition, VOCABULARY, other)
        one, two, three = (read_checkpoint(tmp_path / n).sha256 for n in ("one", "two", "other"))
        assert one == two != three

    def test_metadata_in_any_order(self, written: Path) -> None:
        before = read_checkpoint(written)
        tensors, metadata = raw(written)
        for order in (sorted(metadata), sorted(metadata, reverse=True)):
            rewritten(written, tensors, {key: metadata[key] for key in order})
            assert read_checkpoint(written).sha256 == before.sha256


class TestDamage:
    def expect_refused(self, path: Path) -> str:
        with pytest.raises(UserError) as raised:
            read_checkpoint(path)
        message = str(raised.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert raised.value.code == 2
        return message

    def test_a_bit_of_any_tensor(self, written: Path) -> None:
        tensors, metadata = raw(written)
        for name, array in tensors.items():
            altered = array.copy()
            altered.view("u1").reshape(-1)[-1] ^= 1
            rewritten(written, {**tensors, name: altered}, metadata)
            assert "sha256" in self.expect_refused(written)

    def test_any_metadata(self, written: Path) -> None:
        tensors, metadata = raw(written)
        for name, value in metadata.items():
            rewritten(written, tensors, {**metadata, name: value + " "})
            self.expect_refused(written)
            rewritten(written, tensors, {k: v for k, v in metadata.items() if k != name})
            self.expect_refused(written)
        rewritten(written, tensors, {**metadata, "more": "x"})
        self.expect_refused(written)
        rewritten(written, tensors, {})
        self.expect_refused(written)

    def test_a_tensor_too_few_or_too_many_or_of_another_shape(self, written: Path) -> None:
        tensors, metadata = raw(written)
        for name, array in tensors.items():
            rewritten(written, {k: v for k, v in tensors.items() if k != name}, metadata)
            self.expect_refused(written)
            rewritten(written, {**tensors, name: array.reshape(-1, 1, 1, 1)}, metadata)
            self.expect_refused(written)
            rewritten(written, {**tensors, name: array.astype("f8")}, metadata)
            self.expect_refused(written)
        rewritten(written, {**tensors, "more": np.zeros(1, "f4")}, metadata)
        self.expect_refused(written)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("format", "2"),
            ("format", "5"),
            ("format", "two"),
            ("step", "twelve"),
            ("smooth_loss", "some"),
            ("vocabulary", VOCABULARY[:-1]),
            ("config", "{}"),
            ("config", "[]"),
            ("config", "1"),
            ("config", "{"),
        ],
    )
    def test_what_is_signed_and_yet_no_checkpoint(
        self, written: Path, name: str, value: str
    ) -> None:
        tensors, metadata = raw(written)
        metadata[name] = value
        metadata["sha256"] = checkpoint._sha256(tensors, metadata)
        rewritten(written, tensors, metadata)
        self.expect_refused(written)

    def test_what_is_signed_and_is_one(self, written: Path) -> None:
        """The test above fails for its own reason, not for the hash."""
        tensors, metadata = raw(written)
        metadata["step"] = "13"
        metadata["sha256"] = checkpoint._sha256(tensors, metadata)
        rewritten(written, tensors, metadata)
        assert read_checkpoint(written).state.step == 13

    def test_every_truncation(self, written: Path) -> None:
        whole = written.read_bytes()
        for length in range(len(whole)):
            written.write_bytes(whole[:length])
            self.expect_refused(written)
        written.write_bytes(whole + b"\0")
        self.expect_refused(written)

    def test_a_flipped_bit_in_every_byte(self, written: Path) -> None:
        """It is noticed, or what is read is the same all the same (spaces in the header)."""
        whole = written.read_bytes()
        before = read_checkpoint(written)
        harmless = 0
        for at in range(len(whole)):
            altered = bytearray(whole)
            altered[at] ^= 1 << (at % 8)
            written.write_bytes(altered)
            try:
                found = read_checkpoint(written)
            except UserError:
                continue
            harmless += 1
            assert found.sha256 == before.sha256
            assert bits_of(found.state) == bits_of(before.state)
            assert (found.definition, found.vocabulary) == (before.definition, before.vocabulary)
        assert harmless < 16

    @pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 64, b'{"a": 1}' * 10])
    def test_what_is_no_checkpoint_at_all(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "file").write_bytes(content)
        self.expect_refused(tmp_path / "file")

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        assert "no such file" in self.expect_refused(tmp_path / "nowhere")
        assert "is a directory" in self.expect_refused(tmp_path)


class TestAtomic:
    @pytest.mark.parametrize("call", ["write", "fsync", "rename", "the directory's fsync"])
    @pytest.mark.parametrize("there", [True, False], ids=["in place of another", "new"])
    def test_a_failure_leaves_all_as_it_was(
        self, tmp_path: Path, call: str, *, there: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        definition = a_definition()
        path = checkpoint_path(tmp_path, 12)
        old = a_state(definition, step=1)
        if there:
            write_checkpoint(path, definition, VOCABULARY, old)

        def fails(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        if call == "write":
            monkeypatch.setattr(checkpoint, "write_file", fails)
        elif call == "fsync":
            monkeypatch.setattr(os, "fsync", fails)
        elif call == "rename":
            monkeypatch.setattr(Path, "rename", fails)
        else:
            monkeypatch.setattr(atomic_files, "sync_directory", fails)
        with pytest.raises(OSError, match=r"(?i)no space"):
            write_checkpoint(path, definition, VOCABULARY, a_state(definition))
        monkeypatch.undo()
        left = [p.name for p in tmp_path.iterdir()]
        assert not [name for name in left if name.endswith(".tmp")]
        if there and call == "the directory's fsync":
            assert read_checkpoint(path).state.step == 12
        elif there:
            assert bits_of(read_checkpoint(path).state) == bits_of(old)
        else:
            assert left == []

    def test_it_is_durable_before_it_has_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        fsync, rename, read = os.fsync, Path.rename, checkpoint.read_checkpoint

        def note_fsync(descriptor: int) -> None:
            kind = "directory" if Path(f"/dev/fd/{descriptor}").is_dir() else "file"
            calls.append(f"fsync of the {kind}")
            fsync(descriptor)

        def note_rename(self: Path, target: Path) -> Path:
            calls.append(f"rename to {target.name}")
            return rename(self, target)

        def note_read(path: Path) -> checkpoint.Checkpoint:
            calls.append("read back")
            return read(path)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(Path, "rename", note_rename)
        monkeypatch.setattr(checkpoint, "read_checkpoint", note_read)
        definition = a_definition()
        write_checkpoint(checkpoint_path(tmp_path, 12), definition, VOCABULARY, a_state(definition))
        assert calls == [
            "fsync of the file",
            "read back",
            "rename to step-000000012.safetensors",
            "fsync of the directory",
        ]

    def test_what_is_read_back_wrong_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = atomic_files.write_file

        def wrong(path: Path, pieces: list[bytes]) -> None:
            (data,) = pieces
            write(path, [data[:-1] + bytes([data[-1] ^ 1])])

        monkeypatch.setattr(checkpoint, "write_file", wrong)
        definition = a_definition()
        with pytest.raises((RuntimeError, UserError)):
            write_checkpoint(tmp_path / "it", definition, VOCABULARY, a_state(definition))
        assert not list(tmp_path.iterdir())


class TestNames:
    def test_have_the_step(self, tmp_path: Path) -> None:
        assert checkpoint_path(tmp_path, 0).name == "step-000000000.safetensors"
        assert checkpoint_path(tmp_path, 1000).name == "step-000001000.safetensors"
        assert checkpoint_path(tmp_path, 10**10).name == "step-10000000000.safetensors"

    def test_are_listed_by_step(self, tmp_path: Path) -> None:
        steps = [0, 5, 40, 999_999_999, 10**9, 10**10]
        for step in reversed(steps):
            checkpoint_path(tmp_path, step).touch()
        for name in (
            ".step-000000007.safetensors.1234.tmp",
            "step-000000008.safetensors.damaged-2",
            "step-9.safetensors",
            "step-00000000x.safetensors",
            "letter",
        ):
            (tmp_path / name).touch()
        assert list_checkpoints(tmp_path) == [(s, checkpoint_path(tmp_path, s)) for s in steps]

    def test_of_a_writer_that_was_killed_go(self, tmp_path: Path) -> None:
        temporary = tmp_path / ".step-000000007.safetensors.1.tmp"
        temporary.touch()
        assert list_checkpoints(tmp_path) == []
        atomic_files.remove_temporary(tmp_path)
        assert not temporary.exists()
