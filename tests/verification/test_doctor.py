"""The command `doctor`: what it reports of this machine."""

import json
import re

import pytest

from tests.commands import Commands

FACTS = ("manychar", "python", "system", "cpu", "cores", "usable_cores", "open_files")
LIMITS = ("free_disk_bytes", "pyzmq", "libzmq", "curve")
ARITHMETIC = ("numerics", "libraries", "kernels", "fingerprints")


@pytest.mark.parametrize("flags", [(), ("--numerics", "native")])
def test_doctor_reports_this_machine_as_json(manychar: Commands, flags: tuple[str, ...]) -> None:
    done = manychar.run("doctor", *flags)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found.keys() == {*FACTS, *LIMITS, *ARITHMETIC}
    assert found["numerics"] == (flags[1] if flags else "portable")
    assert found["fingerprints"].keys() == {"float32", "float64"}
    for fingerprint in found["fingerprints"].values():
        assert re.fullmatch("[0-9a-f]{64}", fingerprint)
