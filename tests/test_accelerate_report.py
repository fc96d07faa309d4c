"""accelerate: layers that are not replaced and the reasons, the report, and invalid input."""

import re

import pytest
import torch
from torch import Tensor, nn

import mtlkit
from harness.third_party_models import NETWORKS, LocalSS2D, VMambaSS2D, accelerated, perturbed, plain_medmamba, wrapped

# --- layers that are not replaced -------------------------------------------------------------------------------------


class WithScale(plain_medmamba.SS2D):
    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.skip_scale = nn.Parameter(torch.ones(6))


class WithBuffer(plain_medmamba.SS2D):
    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.register_buffer("mask", torch.ones(6))


class WithPath(plain_medmamba.SS2D):
    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.drop_path = nn.Dropout(0.1)


class WithoutScan(plain_medmamba.SS2D):
    def forward_corev0(self, x: Tensor) -> tuple[Tensor, ...]:
        return selective_scan_fn(x)  # noqa: F821 - the name is missing after a failed import of mamba-ssm


class InCudaDevice(VMambaSS2D):
    """Like VMamba's code, which enters the device of any tensor that it gets."""

    def forward_corev2(self, x: Tensor, scan) -> Tensor:
        with torch.cuda.device(x.device):
            return super().forward_corev2(x, scan)


class OnTriton(VMambaSS2D):
    """Like code that launches Triton kernels without a GPU."""

    def forward_corev2(self, x: Tensor, scan) -> Tensor:
        raise RuntimeError("0 active drivers ([]). There should only be one.")


class Tupled(plain_medmamba.SS2D):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


class TwoInputs(plain_medmamba.SS2D):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x * mask)


def quantised() -> nn.Module:
    layer = plain_medmamba.SS2D(6, 3)
    return torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, torch.qint8)


def parametrised() -> nn.Module:
    layer = plain_medmamba.SS2D(6, 3)
    torch.nn.utils.parametrizations.weight_norm(layer.in_proj)
    return layer


def parametrised_scan() -> nn.Module:
    layer = plain_medmamba.SS2D(6, 3)
    torch.nn.utils.parametrizations.weight_norm(layer, "x_proj_weight")
    return layer


def child_hook() -> nn.Module:
    layer = plain_medmamba.SS2D(6, 3)
    layer.out_norm.register_forward_hook(lambda *_: None)
    return layer


def changed(**parts) -> nn.Module:
    layer = plain_medmamba.SS2D(6, 3)
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer


LEFT = {
    "other scan orders": (
        lambda: VMambaSS2D(6, orders="swapped", act=nn.GELU),
        r"computes something else: .* differ by \d+%",
    ),
    "swapped scan orders": (lambda: VMambaSS2D(6, orders="swapped"), "computes something else"),
    "three directions": (lambda: VMambaSS2D(6, directions=3), "scans in 3 directions, of which no published order"),
    "a direction of another name": (lambda: LocalSS2D(6, ("h", "z")), "scans in a direction called z"),
    "directions without names": (
        lambda: changed(multi_scan=nn.Identity(), act=nn.GELU()), "its multi_scan does not name its directions"
    ),
    "a further parameter": (lambda: WithScale(6, 3), "has parameters that SS2D has not: skip_scale"),
    "a buffer": (lambda: WithBuffer(6, 3), "has buffers"),
    "stochastic depth inside": (lambda: WithPath(6, 3), r"a part that SS2D has not: drop_path \(Dropout\)"),
    "no scan on this machine": (lambda: WithoutScan(6, 3), r"NameError: name 'selective_scan_fn'.*install_mamba_ssm"),
    "a tuple": (lambda: Tupled(6, 3), "returns something else than 1 tensor"),
    "two inputs": (lambda: TwoInputs(6, 3), "does not run here .*missing 1 required positional argument: 'mask'"),
    "quantised": (quantised, r"in_proj is quantised \(torch\.ao\."),
    "weight norm": (parametrised, r"in_proj has parts of its own"),
    "weight norm of the scan": (parametrised_scan, r"a part that SS2D has not: parametrizations"),
    "a hook inside": (child_hook, "out_norm has hooks, which would no longer be called"),
    "batch norm": (lambda: changed(out_norm=nn.BatchNorm2d(12)), "has buffers|out_norm is no LayerNorm"),
    "an activation with a parameter": (lambda: changed(act=nn.PReLU()), r"parameters that SS2D has not: act\.weight"),
    "a strided convolution": (
        lambda: changed(conv2d=nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12)),
        "conv2d is not depthwise over 12 channels",
    ),
    "a full convolution": (lambda: changed(conv2d=nn.Conv2d(12, 12, 3, padding=1)), "conv2d is not depthwise"),
    "no A_logs": (lambda: changed(A_logs=None), "lacks parameters, or computes them: A_logs"),
    "other Ds": (lambda: changed(Ds=nn.Parameter(torch.ones(12))), r"Ds has shape \(12,\), and SS2D \(48,\)"),
    "a wide projection": (lambda: changed(in_proj=nn.Linear(6, 36)), "in_proj gives 36 channels, and SS2D 12 or 24"),
    "another output": (lambda: changed(out_proj=nn.Linear(12, 7)), "out_proj maps 12 to 7 channels, not 12 to 6"),
    "no projection": (lambda: changed(in_proj=nn.Identity()), "lacks parameters, or computes them: in_proj.weight"),
    "tensor subclass": (
        lambda: changed(A_logs=nn.Parameter(torch.ones(48, 3, dtype=torch.complex64))),
        "A_logs is a Parameter of torch.complex64, not a plain floating-point Parameter",
    ),
    "meta": (lambda: plain_medmamba.SS2D(6, 3).to("meta"), "meta device.*check=False"),
    "not finite": (lambda: changed(forward_core=lambda x: (x * float("nan"),)), "not finite"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch warns about quantisation
@pytest.mark.parametrize("case", LEFT)
def test_look_alikes_are_left_alone(case):
    make, reason = LEFT[case]
    model = nn.Sequential(make(), plain_medmamba.SS2D(6, 3))
    layer = model[0]
    report = mtlkit.accelerate(model)
    assert model[0] is layer
    assert [entry.name for entry in report.replaced] == ["1"]
    (left,) = report.left
    assert left.name == "0"
    assert left.kind == type(layer).__name__
    assert re.search(reason, left.reason), left.reason


def test_zero_weights_hide_no_difference():
    model = nn.Sequential(VMambaSS2D(6, orders="swapped"))
    nn.init.zeros_(model[0].out_proj.weight)
    assert mtlkit.accelerate(model).left


def test_a_layer_that_cannot_run_is_swapped_unchecked():
    model = nn.Sequential(perturbed(WithoutScan(6, 3)))
    twin = nn.Sequential(plain_medmamba.SS2D(6, 3))
    twin.load_state_dict(model.state_dict())
    report = mtlkit.accelerate(model, check=False)
    assert report.replaced[0].error is None
    assert "not compared" in str(report)
    x = torch.randn(1, 5, 7, 6)
    torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CPU tensor has a device to enter")
def test_cuda_devices_are_not_entered():
    model = nn.Sequential(perturbed(InCudaDevice(6)))
    x = torch.randn(1, 5, 7, 6)
    with pytest.raises(ValueError, match="cuda"):
        model(x)
    device = torch.cuda.device
    (entry,) = mtlkit.accelerate(model, strict=True).replaced
    assert torch.cuda.device is device
    assert entry.error < 1e-5
    assert not entry.formula
    twin = nn.Sequential(VMambaSS2D(6))
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)


def test_code_that_needs_a_gpu_is_compared_by_its_formula():
    model = nn.Sequential(perturbed(OnTriton(6)))
    twin = nn.Sequential(VMambaSS2D(6))
    twin.load_state_dict(model.state_dict())
    report = mtlkit.accelerate(model, strict=True)
    assert report.replaced[0].formula
    assert re.search(r"differs from the formula, as its own code needs a GPU, by \de-0\d", str(report))
    x = torch.randn(1, 5, 7, 6)
    torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)


def test_a_layer_without_a_parent_is_left_alone():
    layer = plain_medmamba.SS2D(6, 3)
    (left,) = mtlkit.accelerate(layer).left
    assert "it is the model itself" in left.reason


def test_mamba_blocks_are_named():
    block = nn.Module()
    for name in ("conv1d", "x_proj", "dt_proj"):
        setattr(block, name, nn.Linear(2, 2))
    block.A_log, block.D = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    (left,) = mtlkit.accelerate(nn.Sequential(block)).left
    assert left.reason == "it has no in_proj, out_proj, which Mamba has"


# --- the call ---------------------------------------------------------------------------------------------------------


def test_a_second_call_has_no_effect():
    model = accelerated(NETWORKS["medmamba"]())
    modules = dict(model.named_modules())
    report = mtlkit.accelerate(model, strict=True)
    assert not report.replaced
    assert not report.left
    assert len(report.already) == 3
    assert dict(model.named_modules()) == modules


def test_nothing_to_replace():
    model = nn.Sequential(nn.Linear(2, 2))
    report = mtlkit.accelerate(model)
    assert str(report) == ("mtlkit.accelerate: 0 replaced, 0 left alone: the model has no layer that mtlkit replaces")
    with pytest.raises(ValueError, match=r"(?s)model: with strict=True.*no layer that mtlkit replaces"):
        mtlkit.accelerate(model, strict=True)


def test_strict_changes_all_or_nothing():
    model = nn.Sequential(plain_medmamba.SS2D(6, 3), WithScale(6, 3))
    layers = list(model)
    with pytest.raises(ValueError, match=r"(?s)model: with strict=True.*left +1 +WithScale"):
        mtlkit.accelerate(model, strict=True)
    assert list(model) == layers


def test_the_report_reads_well():
    model = nn.ModuleDict({"a": plain_medmamba.SS2D(6, 3), "second": VMambaSS2D(6, directions=3)})
    lines = str(mtlkit.accelerate(model)).splitlines()
    assert lines[0] == "mtlkit.accelerate: 1 replaced, 1 left alone"
    assert lines[1].startswith(
        "  replaced  a       SS2D        C=6, D=12, N=3, R=1, silu gate, channels-last; differs by"
    )
    assert lines[2] == "  left      second  VMambaSS2D  it scans in 3 directions, of which no published order is known"
    assert "SharedSS2D(" in repr(model)
    assert "for=SS2D" in repr(model)


def test_without_the_report_the_model_comes_back():
    model = NETWORKS["medmamba"]()
    assert mtlkit.accelerate(model, report=False) is model
    assert isinstance(model.layers[0].blocks[0].self_attention, mtlkit.nn.SS2D)


@pytest.mark.parametrize("function", [mtlkit.accelerate, mtlkit.restore])
def test_only_modules_are_taken(function):
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got function"):
        function(lambda: None)


def test_bad_input_of_a_swapped_layer_is_named():
    model = accelerated(wrapped("vmamba_first"))
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 6, H, W\), got \(1, 5, 7, 6\); channels come first"):
        model(torch.randn(1, 5, 7, 6))
    with pytest.raises(TypeError, match="x: expected float32"):
        model(torch.ones(1, 6, 5, 7, dtype=torch.int64))
