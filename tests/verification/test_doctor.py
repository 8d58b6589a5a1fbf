"""The command `doctor`: what it reports of this machine."""

import json
import re

from tests.commands import Commands

FACTS = ("manychar", "python", "system", "cpu", "cores", "usable_cores", "open_files")
LIMITS = ("free_disk_bytes", "pyzmq", "libzmq", "curve", "numerics")


def test_doctor_reports_this_machine_as_json(manychar: Commands) -> None:
    done = manychar.run("doctor")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found.keys() == {*FACTS, *LIMITS}
    assert found["numerics"].keys() == {"portable", "native"}
    for numerics in found["numerics"].values():
        assert numerics.keys() == {"libraries", "kernels", "fingerprints"}
        assert numerics["fingerprints"].keys() == {"float32", "float64"}
        for fingerprint in numerics["fingerprints"].values():
            assert re.fullmatch("[0-9a-f]{64}", fingerprint)
