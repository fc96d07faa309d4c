"""The gates of the epochs, from the tables of a run; test_runner.py has what an evaluation says."""

import pytest

from mtlkit.evaluation.analysis import epoch_gates


def test_gates_of_the_epochs(tmp_path):
    for number, rows in ((1, ["0,0.5,0.1", "1,0.25,0.2"]), (2, ["0,0.75,0.3"])):
        (tmp_path / f"stage{number}").mkdir()
        text = "\n".join(["epoch,val/gate_image,val/iou", *rows]) + "\n"
        (tmp_path / f"stage{number}/metrics.csv").write_text(text)
    assert epoch_gates(tmp_path) == [{"image": [0.5, 0.25]}, {"image": [0.75]}]


@pytest.mark.parametrize(
    "text", ["", "epoch,val/iou\n0,0.5\n", "epoch,val/gate_image\n0,x\n", "epoch,val/gate_image\n0\n"]
)
def test_tables_without_gates(tmp_path, text):
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1/metrics.csv").write_text(text)
    assert epoch_gates(tmp_path) == []
