"""A sample of the faults that `make faults` injects: each kind once."""
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != 'linux', reason='the faults are those of Linux')
def test_each_kind_of_fault_once(root, tmp_path):
    "The whole list takes an hour; see `tests/faults`."
    line = [sys.executable, '-m', 'faults', '--each', '--seed', '0', '--out', tmp_path/'faults.json']
    done = subprocess.run(line, cwd=root/'tests', capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
