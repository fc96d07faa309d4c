"""Claims: one holder at a time, and released when its process ends."""

import pytest

from mtlkit._claims import claimed
from mtlkit.errors import InUseError

HOLD = """
import sys
from pathlib import Path
from mtlkit._claims import claimed
with claimed(Path(sys.argv[1]), Path("runs/one")):
    print("held", flush=True)
    if sys.argv[2] == "die":
        import os
        os._exit(9)
"""


def test_a_claim_is_held_once_and_leaves_nothing(tmp_path):
    lock = tmp_path / "lock"
    with claimed(lock, tmp_path):
        assert "process" in lock.read_text()
        with pytest.raises(InUseError, match="this process writes to it already"), claimed(lock, tmp_path):
            pass
    assert not lock.exists()
    with claimed(lock, tmp_path):
        pass


def test_another_process_is_refused_and_told_who_holds_it(tmp_path, run_python):
    lock = tmp_path / "lock"
    with claimed(lock, tmp_path):
        process = run_python("-c", HOLD, str(lock), "end")
    assert "InUseError: runs/one: another process writes to it (process " in process.stderr
    assert run_python("-c", HOLD, str(lock), "end").stdout == "held\n"


def test_a_claim_ends_with_its_process(tmp_path, run_python):
    lock = tmp_path / "lock"
    assert run_python("-c", HOLD, str(lock), "die").returncode == 9
    assert lock.exists()
    with claimed(lock, tmp_path):
        pass
