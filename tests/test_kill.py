"""The script that kills commands: a few kills of each command, and its report of differences."""

import pytest
import torch

from tests import kill


@pytest.mark.slow
def test_a_few_kills(run_python, root):
    process = run_python("-m", "tests.kill", "--times", "4", path=[root], OMP_NUM_THREADS="1")
    assert process.returncode == 0, process.stdout + process.stderr


def test_differences_are_told(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.csv").write_text("1")
        torch.save(
            {"callbacks": f"{tmp_path / name}/best", "state_dict": {"w": torch.ones(2)}}, tmp_path / name / "last.ckpt"
        )
    one, other = tmp_path / "a", tmp_path / "b"
    assert kill.difference(one, other) == ""
    (one / "x.csv").write_text("2")
    assert kill.difference(one, other) == "x.csv differs"
    (one / "x.csv").unlink()
    assert kill.difference(one, other) == "x.csv is missing"
    assert kill.difference(other, one) == "x.csv is left over"
    torch.save({"callbacks": f"{one}/best", "state_dict": {"w": torch.zeros(2)}}, one / "last.ckpt")
    assert kill.difference(one, other) == "last.ckpt differs"
