"""A few of the cases of tests/faults.py; its docstring says how to run all of them."""

import subprocess
import sys

from conftest import ROOT


def test_faults_end_in_a_right_result_or_one_clear_error():
    command = [sys.executable, str(ROOT / "tests" / "faults.py"), "--cases", "13", "--sizes", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
