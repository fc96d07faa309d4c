"""Published checkpoints: restated networks give the same results once loaded; reports and hostile files."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.published_networks import CLASSES, DIMS, FirstVMamba, VMUNet, vmamba
from harness.third_party_models import MedMamba, perturbed
from mtlkit.errors import CheckpointError
from mtlkit.models import create_model, load_published

SIZES = {"depths": (1, 1), "dims": DIMS}
CLASSIFIER = SIZES | {"num_classes": CLASSES}
UNET = SIZES | {"decoder_depths": (1, 1), "d_state": 4}
LAYOUTS = {
    "medmamba": (lambda: MedMamba(CLASSES, (1, 1), DIMS, 4), "medmamba_t", CLASSIFIER | {"d_state": 4}),
    "vmamba": (vmamba, "vmamba_t_s1l8", CLASSIFIER),
    "vmamba_first": (FirstVMamba, "vmamba_t_v0", CLASSIFIER | {"d_state": 4}),
    "vm_unet": (VMUNet, "vm_unet", UNET),
}


def state() -> dict[str, Tensor]:
    return dict(create_model("medmamba_t", **CLASSIFIER).state_dict())


@pytest.fixture
def model() -> nn.Module:
    return create_model("medmamba_t", **CLASSIFIER)


def logits_of(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output.seg_logits.sigmoid()


# --- the same network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_networks_compute_the_same(name, tmp_path):
    make, ours, options = LAYOUTS[name]
    published = perturbed(make()).double().eval()
    counters = {"total_ops": torch.zeros(1), "layers.0.total_params": torch.zeros(1)}
    torch.save({"model": dict(published.state_dict()) | counters, "epoch": 7}, tmp_path / "net.pth")
    network = create_model(ours, **options, dtype=torch.float64).eval()
    report = load_published(network, tmp_path / "net.pth")
    assert (report.missing, report.unexpected) == ((), ())
    assert report.used == tuple(network.state_dict())
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(network(images)), published(images), rtol=1e-9, atol=1e-12)
    network.load_state_dict(published.state_dict())  # the published names work directly, too


def test_the_first_vmamba_starts_both_halves_of_vm_unet(tmp_path):
    published = perturbed(FirstVMamba())
    torch.save({"model": published.state_dict()}, tmp_path / "vmamba.pth")
    network = create_model("vm_unet", **UNET)
    with pytest.warns(
        UserWarning, match=r"VMUNet: newly initialised, .* layers_up.1.upsample.expand.weight, .*final_conv.bias"
    ):
        report = load_published(network, tmp_path / "vmamba.pth")
    ours, theirs = network.state_dict(), published.state_dict()
    for i in (0, 1):
        expected = theirs[f"layers.{i}.blocks.0.self_attention.out_proj.weight"]
        assert torch.equal(ours[f"layers.{i}.blocks.0.op.out_proj.weight"], expected)
        assert torch.equal(ours[f"layers_up.{1 - i}.blocks.0.op.out_proj.weight"], expected)
    assert {name.split(".")[0] for name in report.missing} == {"layers_up", "final_up", "final_conv"}
    assert all(".upsample." in name for name in report.missing if name.startswith("layers_up"))
    assert report.unexpected == ("norm.weight", "norm.bias", "head.weight", "head.bias")


# --- new parameters, and mismatches -----------------------------------------------------------------------------------


def test_another_number_of_classes_leaves_the_head(tmp_path):
    torch.save(state(), tmp_path / "net.pth")
    network = create_model("medmamba_t", **CLASSIFIER | {"num_classes": 5})
    head = network.head.weight.detach().clone()
    with pytest.warns(UserWarning, match=r"MedMamba: newly initialised, not loaded; train .* head.weight, head.bias$"):
        report = load_published(network, tmp_path / "net.pth")
    assert torch.equal(network.head.weight, head)
    assert report.missing == ("head.weight", "head.bias")
    assert "1 tensor used" not in str(report)
    assert "missing     head.weight" in str(report)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv1.weight": torch.zeros(8, 3, 7, 7)},
            r"expected parameters of MedMamba, such as 'patch_embed.proj.*0 of 1",
        ),
        ({"head.bias": torch.zeros(CLASSES)} | {f"blocks.{i}.w": torch.zeros(1) for i in range(9)}, "1 of 10 fit"),
        ({"epoch": 3, "model": {}}, "there are no parameters in it"),
        ([1, 2], "there are no parameters in it"),
        (
            {"patch_embed.proj.weight": torch.zeros(96, 3, 4, 4)},
            r"patch_embed.proj.weight: expected shape \(16, 3, 4, 4\)",
        ),
    ],
)
def test_what_does_not_fit_changes_nothing(model, tmp_path, content, message):
    torch.save(content, tmp_path / "net.pth")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"net.pth: .*{message}"):
        load_published(model, tmp_path / "net.pth")
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_other_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"model: expected a network of mtlkit.models, got Linear"):
        load_published(nn.Linear(2, 2), tmp_path / "net.pth")


# --- files ------------------------------------------------------------------------------------------------------------


def test_safetensors(model, tmp_path):
    saved = {name: value.contiguous() for name, value in state().items()}
    save_file(saved, tmp_path / "net.safetensors")
    assert load_published(model, tmp_path / "net.safetensors").used == tuple(saved)
    assert torch.equal(model.head.weight, saved["head.weight"])
    (tmp_path / "net.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="damaged, or not a file of safetensors"):
        load_published(model, tmp_path / "net.safetensors")


class Planted:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_runs(model, tmp_path, zipped):
    planted = {"model": state(), "config": Planted(str(tmp_path / "ran"))}
    torch.save(planted, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"it contains posix.mkdir besides tensors, which could run code, and is not opened"
    ):
        load_published(model, tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()
    torch.save(model, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"MedMamba .*torch.save\(torch.load\(file, weights_only=False\)\['model'\]"
    ):
        load_published(model, tmp_path / "net.pth")


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04", b"\x80\x02"])
def test_damaged_files(model, tmp_path, content):
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net.pth: it is damaged, or not a file of torch.save"):
        load_published(model, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"other.pth: there is no such file"):
        load_published(model, tmp_path / "other.pth")
