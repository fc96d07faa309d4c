"""`python -m mtlkit` is the command `mtlkit`."""

import subprocess
import sys


def test_the_package_runs_as_the_command():
    run = subprocess.run([sys.executable, "-m", "mtlkit", "trian"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "did you mean 'train'?" in run.stderr
