"""Networks of every family as ONNX files: one file for three sizes and two batches, and what cannot be exported."""

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import mtlkit
from harness.third_party_models import MedMamba, accelerated
from mtlkit import deploy
from mtlkit.deploy import _example, _export
from mtlkit.errors import DataError, ExistsError
from mtlkit.models import create_model
from mtlkit.testing import relative_error

SCANS = {"num_classes": 3, "depths": (1,), "dims": (8,)}
PAIR = {"encoder": "resnet18", "decoder_dims": (16, 12, 8, 8), "clf_dim": 16, "hmsf": False}
MODELS = {
    "medmamba_t": SCANS,
    "vmamba_t_v0": SCANS,
    "mbdi": PAIR | {"levels": (3,), "normaliser": "running"},
}
SLOW = {
    "vmamba_t_s1l8": SCANS | {"depths": (1, 1), "dims": (8, 16)},
    "vm_unet": SCANS | {"depths": (1, 1), "dims": (8, 16), "decoder_depths": (1, 1)},
    "btinet": PAIR | {"hmsf": True},
    "csa_moe": {},
    "hybrid_vssm": {"depths": (2, 1)},
}
CASES = [*MODELS.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.items())]
SIZES = (2, 96, 64), (1, 64, 128), (2, 32, 32)
MTLKIT = {"SS2D", "DwconvSilu", "TaskInteraction"}


def inputs(name: str, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
    if name == "hybrid_vssm":
        return torch.rand(batch, 4, 3, height, width), torch.ones(batch, 4, dtype=torch.bool)
    images = torch.rand(batch, 3, height, width)
    if name != "csa_moe":
        return (images,)
    masks = torch.zeros(batch, 1, height, width)
    masks[:, :, 5:20, 7:25] = 1
    return images, masks


def spread(model: nn.Module) -> nn.Module:
    """Gives batch norms statistics that differ from the initial ones."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def outputs_of(session: Any, given: tuple[Tensor, ...]) -> list[Tensor]:
    named = {one.name: t.numpy() for one, t in zip(session.get_inputs(), given, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, named)]


def assert_agrees(model: nn.Module, session: Any, given: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        expected = list(_example.named_outputs(model(*given)).values())
    for got, exact in zip(outputs_of(session, given), expected, strict=True):
        assert relative_error(got, exact) < 1e-5


def kinds(path: Path, domain: str = "mtlkit") -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node if node.domain == domain}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_networks(name, options, tmp_path):
    model, path = spread(create_model(name, **options)), tmp_path / "net.onnx"
    found = mtlkit.export(model, path, metadata={"size": 64})
    assert found.error < 1e-5
    assert {d for shape in found.inputs.values() for d in shape if isinstance(d, str)} == {"batch", "height", "width"}
    assert kinds(path) & MTLKIT or name == "csa_moe"
    session = deploy.open_session(path, threads=1)
    for size in SIZES:
        assert_agrees(model, session, inputs(name, *size))
    facts = deploy.facts_of(session)
    assert facts["size"] == 64
    assert facts["network"] == type(model).__name__
    assert [one.name for one in session.get_inputs()] == list(mtlkit.models.network.takes(model))


def test_a_third_party_model(tmp_path):
    model = accelerated(spread(MedMamba(3, (1,), (8,), 4)))
    mtlkit.export(model, tmp_path / "net.onnx", example=torch.rand(1, 3, 32, 48))
    assert kinds(tmp_path / "net.onnx") == {"SS2D", "DwconvSilu", "Shuffle"}
    session = deploy.open_session(tmp_path / "net.onnx")
    for size in SIZES:
        assert_agrees(model, session, inputs("", *size))


class Scan(nn.Module):
    """The 1-D operator, followed by norm_gate alone."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.weight = nn.Parameter(-torch.rand(4, 3)), nn.Parameter(torch.rand(4))

    def forward(self, u: Tensor, rows: Tensor) -> dict[str, Tensor]:
        y = mtlkit.selective_scan_fn(u, u, self.A, rows, rows, delta_softplus=True)
        return {"y": mtlkit.ops.norm_gate(y.transpose(1, 2), self.weight), "mean": y.mean(2)}


def test_operators_by_themselves(tmp_path):
    found = mtlkit.export(Scan(), tmp_path / "net.onnx", example=(torch.rand(2, 4, 9), torch.rand(2, 3, 9)))
    assert list(found.inputs) == ["u", "rows"]
    assert list(found.outputs) == ["y", "mean"]
    assert kinds(tmp_path / "net.onnx") == {"SelectiveScan", "NormGate"}


def test_plain(tmp_path):
    layer = mtlkit.nn.VSSBlock(8).eval()
    found = mtlkit.export(layer, tmp_path / "net.onnx", example=torch.rand(2, 3, 4, 8), plain=True)
    assert found.inputs == {"x": ("batch", 3, 4, 8)}
    assert not kinds(tmp_path / "net.onnx")
    assert "If" not in kinds(tmp_path / "net.onnx", "")


class Small(nn.Module):
    """Constants that PyTorch's optimiser treats as 0 and 1."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.log(x + 1e-8), x - 1e-9, 1 - x * 1.000005, 1 - x / 1.000005, x.mean() + 1e-9


@pytest.mark.parametrize("plain", [True, False])
def test_small_constants_stay(plain, tmp_path):
    x = torch.tensor([[1e-9, 2e-9], [1e-8, 1.0]])
    found = mtlkit.export(Small(), tmp_path / "net.onnx", example=x, plain=plain)
    assert found.error < 1e-6
    assert {node.domain for node in onnx.load(tmp_path / "net.onnx").graph.node} == {""}


def test_the_model_stays_as_it_is(tmp_path):
    layer = mtlkit.nn.SS2D(8, 4).train()
    before = copy.deepcopy(layer.state_dict())
    mtlkit.export(layer, tmp_path / "net.onnx", example=torch.rand(2, 3, 4, 8))
    assert layer.training
    assert all(p.requires_grad for p in layer.parameters())
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())
    assert "forward" not in vars(layer)
    first = (tmp_path / "net.onnx").read_bytes()
    with pytest.raises(ExistsError, match="exists already"):
        mtlkit.export(layer, tmp_path / "net.onnx", example=torch.rand(2, 3, 4, 8))
    assert (tmp_path / "net.onnx").read_bytes() == first


# --- what cannot be exported ------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "example", "error", "words"),
    [
        ("resnet18", None, TypeError, "model: expected a torch.nn.Module, got str"),
        (
            nn.Linear(3, 2).bfloat16(),
            torch.rand(2, 3),
            ValueError,
            "model: expected float32, got torch.bfloat16",
        ),
        (nn.Linear(3, 2), None, ValueError, "example: expected a tensor, or several, as the model does not say"),
        (nn.Linear(3, 2), (), ValueError, "example: expected at least one tensor, got none"),
        (nn.Linear(3, 2), ("image",), TypeError, "example: expected tensors of a batch, got str as number 1"),
        (Branching(), torch.rand(2, 3), ValueError, r"model: cannot be traced by torch.export \("),
        (mtlkit.nn.SS2D(4, 300).eval(), torch.rand(2, 3, 4, 4), ValueError, "at most 256 states, got 300"),
    ],
)
def test_refusals(model, example, error, words, tmp_path):
    with pytest.raises(error, match=words):
        mtlkit.export(model, tmp_path / "net.onnx", example=example)
    assert not list(tmp_path.iterdir())


def test_operators_without_a_node(tmp_path, monkeypatch):
    monkeypatch.setattr(_export._nodes, "translations", dict)
    with pytest.raises(ValueError, match=r"expected operators that have a node, got mtlkit\.dwconv_silu, mtlkit\.ss2d"):
        mtlkit.export(mtlkit.nn.SS2D(4, 2), tmp_path / "net.onnx", example=torch.rand(2, 3, 4, 4))


def test_a_wrong_file_gets_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(_export, "_compare", lambda *_: 0.5)
    with pytest.raises(ValueError, match=r"net\.onnx: expected .* relative error of 5\.0e-01; nothing was written"):
        mtlkit.export(nn.Linear(3, 2), tmp_path / "net.onnx", example=torch.rand(2, 3))
    assert not list(tmp_path.iterdir())


def test_an_image_of_other_channels(tmp_path):
    mtlkit.export(nn.Conv2d(3, 2, 1), tmp_path / "net.onnx", example=torch.rand(2, 3, 4, 5))
    session = deploy.open_session(tmp_path / "net.onnx")
    with pytest.raises(Exception, match="Got: 4 Expected: 3"):
        session.run(None, {session.get_inputs()[0].name: torch.rand(1, 4, 4, 5).numpy()})


def test_nowhere_to_write(tmp_path):
    with pytest.raises(DataError, match="expected a file, found a folder"):
        mtlkit.export(nn.Linear(3, 2), tmp_path, example=torch.rand(2, 3))
