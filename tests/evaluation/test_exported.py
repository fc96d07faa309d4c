"""Networks in ONNX Runtime sessions, evaluated like those in PyTorch."""

from types import SimpleNamespace

import pytest
import torch

from mtlkit.evaluation.exported import in_session, key_figures, split_for_calibration


class Session:
    """Returns the outputs of a run's network, except for its masks, which are empty."""

    def __init__(self, run) -> None:
        self.model = run.model

    def get_inputs(self):
        return [SimpleNamespace(name="images")]

    def get_outputs(self):
        return [SimpleNamespace(name=name) for name in ("seg_logits", "cls_logits", "gates")]

    def run(self, outputs, feeds):
        with torch.no_grad():
            found = type(self.model).forward(self.model, torch.from_numpy(feeds["images"]))
        return [(found.seg_logits - 100).numpy(), found.cls_logits.numpy(), found.gates.numpy()]


def test_figures(lesion):
    records = lesion.open_data().subset(lesion.split.test).records
    before = key_figures(lesion, records)
    after = key_figures(in_session(lesion, Session(lesion)), records)
    assert {"iou", "accuracy", "auc"} <= set(before)
    assert after["iou"] == 0
    assert {name: value for name, value in after.items() if name != "iou"} == pytest.approx(
        {name: value for name, value in before.items() if name != "iou"}
    )
    assert "forward" not in vars(lesion.model)


def test_groups_are_not_split(lesion):
    records = lesion.open_data().records
    chosen, held_out = split_for_calibration(records, 8)
    assert 0 < len(chosen) <= 8
    assert len(chosen) + len(held_out) == len(records)
    assert not {record.group for record in chosen} & {record.group for record in held_out}
    assert split_for_calibration(records[:1], 8) == ([], list(records[:1]))
