"""Numerics are pinned before numpy is imported, and machines that differ come to the same bits."""

import json
import platform
import re
from pathlib import Path

import pytest

from manychar.processes.errors import RUN_FAILED
from tests.commands import SMALL, Commands
from tests.fleet.test_fleet import expect_same_bits, further

X86 = platform.machine().lower() in ("x86_64", "amd64")
HASWELL, SKYLAKE = {"OPENBLAS_CORETYPE": "Haswell"}, {"OPENBLAS_CORETYPE": "SkylakeX"}
ASKED = """
import ctypes, json, os, re, sys
from pathlib import Path
numerics, = sys.argv[1:]
from manychar.processes.numerics_pinning import pin
assert "numpy" not in sys.modules
pin(numerics)
import numpy as np
pin(numerics)
threads = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 1
a = np.ones((600, 600)); a @ a
after = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 1
names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")
print(json.dumps({"threads": [threads, after], **{name: os.environ.get(name) for name in names}}))
"""
PROVEN = """
import json, sys
from manychar.processes.numerics_pinning import pin
pin(sys.argv[1])
from manychar.numerics.kernel import Kernel
from manychar.numerics.numerics_fingerprint import fingerprint
print(fingerprint(Kernel(13, 64, seq_length=5, streams=16, dtype="float32"), {}))
"""
LARGER = ("--hidden", "64", "--seq-length", "5", "--streams", "16")


@pytest.mark.parametrize("numerics", ["portable", "native"])
def test_one_thread(manychar: Commands, numerics: str) -> None:
    env = {"OPENBLAS_NUM_THREADS": "7", "OMP_NUM_THREADS": "7"}
    done = manychar.run(numerics, program=("-c", ASKED), env=env)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["threads"] == [1, 1]
    assert found["OPENBLAS_NUM_THREADS"] == found["OMP_NUM_THREADS"] == "1"


@pytest.mark.skipif(not X86, reason="only x86-64 is held to one instruction set")
def test_portable_is_one_instruction_set_and_native_is_the_users(manychar: Commands) -> None:
    portable = json.loads(manychar.run("portable", program=("-c", ASKED), env=SKYLAKE).out)
    assert portable["OPENBLAS_CORETYPE"] == "Haswell"
    assert "X86_V4" in portable["NPY_DISABLE_CPU_FEATURES"]
    native = json.loads(manychar.run("native", program=("-c", ASKED), env=HASWELL).out)
    assert native["OPENBLAS_CORETYPE"] == "Haswell"
    assert native["NPY_DISABLE_CPU_FEATURES"] is None


def test_too_late(manychar: Commands) -> None:
    program = "import numpy\nfrom manychar.processes.numerics_pinning import pin\npin('portable')\n"
    done = manychar.run(program=("-c", program))
    assert done.code == 1
    assert done.last_line == "RuntimeError: numerics portable asked for after numpy was imported"


def test_another_setting_is_too_late(manychar: Commands) -> None:
    program = (
        "from manychar.processes.numerics_pinning import pin\n"
        "pin('portable')\n"
        "import numpy\n"
        "pin('portable')\n"
        "pin('native')\n"
    )
    done = manychar.run(program=("-c", program))
    assert done.last_line == "RuntimeError: numerics native asked for after numpy was imported"


@pytest.mark.parametrize(
    "module",
    [
        "manychar",
        "manychar.api",
        "manychar.cli.app",
        "manychar.protocol.run_operation",
        "manychar.__main__",
        "manychar.protocol.worker",
        "manychar.protocol.codec",
        "manychar.fleet.worker_process",
        "manychar.fleet.worker_pool",
        "manychar.network.dealer",
        "manychar.network.router",
        "manychar.processes.numerics_pinning",
    ],
)
def test_numpy_is_not_imported_by(manychar: Commands, module: str) -> None:
    program = f"import {module}, sys; print('numpy' in sys.modules)"
    done = manychar.run(program=("-c", program))
    assert done.out == "False\n", done.err


@pytest.mark.long
def test_every_command_pins_before_numpy(manychar: Commands, text: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'numpy' and os.environ.get('OPENBLAS_NUM_THREADS') != '1':\n"
        "            print('numpy before the pinning', file=sys.stderr, flush=True)\n"
        "            os._exit(99)\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    flags = (*SMALL, "--steps", "3")
    for arguments in (
        ["train", str(text), *flags, "--run-dir", "run", "--workers", "1"],
        ["train", "--resume", "run", "--steps", "5"],
        ["sample", "run", "--length", "5"],
        ["verify", "run"],
    ):
        done = manychar.run(*arguments, env=env)
        assert done.code == 0, done
        assert "numpy before the pinning" not in done.err


@pytest.mark.skipif(not X86, reason="other kernels are asked for by names of x86-64")
class TestOtherKernels:
    def fingerprint(self, manychar: Commands, numerics: str, env: dict[str, str]) -> str:
        done = manychar.run(numerics, program=("-c", PROVEN), env=env)
        assert done.code == 0, done.err
        return done.out

    def need_other_bits(self, manychar: Commands) -> None:
        if self.fingerprint(manychar, "native", HASWELL) == self.fingerprint(
            manychar, "native", SKYLAKE
        ):
            pytest.skip("this CPU has one kind of kernel only: no AVX-512")

    def test_portable_takes_no_notice(self, manychar: Commands) -> None:
        self.need_other_bits(manychar)
        assert self.fingerprint(manychar, "portable", HASWELL) == self.fingerprint(
            manychar, "portable", SKYLAKE
        )

    @pytest.mark.long
    def test_a_worker_of_another_kind_comes_to_the_same_bits(
        self, manychar: Commands, text: Path
    ) -> None:
        self.need_other_bits(manychar)
        workers = [
            manychar.start("worker", "ipc://meet", "--name", name, env=env)
            for name, env in (("old", HASWELL), ("new", SKYLAKE))
        ]
        server = manychar.start(
            *("server", str(text), *LARGER, "--steps", "0", "--checkpoint-every", "25"),
            *("--sample-every", "25", "--sample-length", "1"),
            *("--shards", "2", "--bind", "ipc://meet", "--run-dir", "run"),
        )
        server.wait_for("old has joined")
        server.wait_for("new has joined")
        further(server)
        further(server)
        server.interrupt()
        served = server.end()
        assert served.code == 0, served.err
        for worker in workers:
            assert worker.end().code == 0
        assert expect_same_bits(manychar.directory / "run", text) >= 25

    @pytest.mark.long
    def test_native_refuses_it_by_name(self, manychar: Commands, text: Path) -> None:
        self.need_other_bits(manychar)
        server = manychar.start(
            *("server", str(text), *LARGER, "--steps", "40", "--numerics", "native"),
            *("--bind", "ipc://meet", "--run-dir", "run", "--sample-length", "0"),
            env=HASWELL,
        )
        server.wait_for("listening")
        refused = manychar.run("worker", "ipc://meet", "--name", "stranger", env=SKYLAKE)
        assert refused.code == 3
        said = server.wait_for("stranger was refused: .*")[0]
        welcome = manychar.run("worker", "ipc://meet", "--name", "friend", env=HASWELL)
        assert welcome.code == 0, welcome.err
        assert server.end().code == 0
        for line in (refused.last_line, said):
            assert "--numerics native" in line
            described = re.search(r"it has (.*numpy.*); the run has (.*numpy.*)", line)
            assert described, line
            assert described[1] != described[2], "the two descriptions are the same"


@pytest.mark.parametrize("command", ["train", "server", "doctor"])
@pytest.mark.parametrize("limit", [100_000, 300_000])
def test_too_little_address_space_is_said_before_numpy_is_loaded(
    manychar: Commands, command: str, limit: int
) -> None:
    limited = (
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit * 1024},) * 2)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'manychar', *sys.argv[1:]])"
    )
    done = manychar.run(*command.split(), program=("-c", limited))
    assert done.code == RUN_FAILED
    what = f"the memory limit is too small: {limit:,} kB of address space (ulimit -v)"
    assert done.err == f"manychar: {what}; give at least 393,216 kB\n"
