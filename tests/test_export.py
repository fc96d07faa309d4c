"""torch.compile and torch.export with dynamic sizes, ONNX, AOTInductor, and their limits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Interpreter

import mtlkit
from harness.third_party_models import MedMamba, accelerated
from mtlkit.models import create_model, list_models
from mtlkit.testing import SS2DShape

TINY = {"num_classes": 3, "depths": (1, 1), "dims": (8, 16)}
PAIR = {"encoder": "resnet18", "decoder_dims": (16, 12, 8, 8), "clf_dim": 16}
# One small network per family; the others differ in sizes and parts.
MODELS = {
    "medmamba_t": TINY | {"d_state": 4},
    "vmamba_t_s1l8": TINY,
    "vmamba_t_v0": TINY,
    "vm_unet": TINY | {"decoder_depths": (1, 1)},
    "btinet": PAIR | {"levels": (1,), "hmsf": False},
    "csa_moe": {"experts": ("image",)},
    "hybrid_vssm": {},
    "mtl_oca": {"encoder": "resnet18", "decoder_dims": (16, 12, 8, 8)},
}
SIBLINGS = {
    "medmamba_t": ("medmamba_s", "medmamba_b"),
    "vmamba_t_s1l8": ("vmamba_t_s2l5", "vmamba_s_s2l15", "vmamba_s_s1l20", "vmamba_b_s2l15"),
    "btinet": ("mbdi",),
    "csa_moe": ("csa_moe_vgg16", "csa_moe_densenet121", "image_classifier"),
    "hybrid_vssm": ("mammo_vssm", "mammo_resnet18", "mammo_resnet50"),
    # tests/models/test_smoke.py compiles and exports the other baselines
    "mtl_oca": (
        *("segresnet", "swin_unetr", "unetr"),
        *("unet", "attention_unet", "unet_plus_plus", "manet", "deeplabv3_plus", "fpn", "segformer", "upernet"),
        *("transunet", "swin_unet", "missformer", "mtan", "mtanet", "mti_net", "densemtl"),
    ),
}
Arguments = tuple[Any, ...]


def test_no_model_is_missing():
    assert set(MODELS) | {name for names in SIBLINGS.values() for name in names} == set(list_models())


def network(name: str) -> nn.Module:
    return create_model(name, **MODELS[name]).eval()


def arguments_of(name: str, batch: int, height: int, width: int) -> Arguments:
    if name == "hybrid_vssm":
        return torch.rand(batch, 4, 3, height, width), torch.ones(batch, 4, dtype=torch.bool)
    if name == "csa_moe":
        masks = torch.zeros(batch, 1, height, width)
        masks[:, :, 10:40, 20:55] = 1
        return torch.rand(batch, 3, height, width), masks
    return (torch.rand(batch, 3, height, width),)


def tensors_of(output: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def assert_same(got: Any, expected: Any) -> None:
    got, expected = tensors_of(got), tensors_of(expected)
    assert expected
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


# --- torch.compile ----------------------------------------------------------------------------------------------------

LAST = Callable[[int, int, int], Arguments]  # images from their number, height and width


def last(channels: int = 8) -> LAST:
    return lambda b, h, w: (torch.randn(b, h, w, channels),)


def first(*channels: int) -> LAST:
    return lambda b, h, w: tuple(torch.randn(b, c, h, w) for c in channels)


def tokens(b: int, h: int, w: int) -> Arguments:
    return (torch.randn(b, 2 * h * w, 8),)


def map_and_vector(b: int, h: int, w: int) -> Arguments:
    return torch.randn(b, 8, h, w), torch.randn(b, 16)


def maps_and_vectors(b: int, h: int, w: int) -> Arguments:
    return torch.randn(b, 8, h, w), torch.randn(b, 8, h, w), torch.randn(b, 16), torch.randn(b, 16)


LAYERS = {
    "AdaptiveGate": (lambda: mtlkit.nn.AdaptiveGate(16), lambda b, h, w: (torch.randn(b, 3, 16),)),
    "AttentionGate": (lambda: mtlkit.nn.AttentionGate(8, 6, 3), first(8, 6)),
    "ConvDownsample": (lambda: mtlkit.nn.ConvDownsample(8, 16), last()),
    "ConvStem": (lambda: mtlkit.nn.ConvStem(3, 8), first(3)),
    "ConvUpsample": (lambda: mtlkit.nn.ConvUpsample(8, 4), first(8)),
    "CrossStageAttention": (lambda: mtlkit.nn.CrossStageAttention((8, 16)), lambda *size: (list(first(8, 16)(*size)),)),
    "DropPath": (lambda: mtlkit.nn.DropPath(0.1), last()),
    "DualPathAttention": (lambda: mtlkit.nn.DualPathAttention(16), first(16)),
    "GatedViewFusion": (
        lambda: mtlkit.nn.GatedViewFusion(16),
        lambda b, h, w: (torch.randn(b, 4, 16), torch.ones(b, 4, dtype=torch.bool)),
    ),
    "InteractionLevel": (lambda: mtlkit.nn.InteractionLevel(8, 16, "alignment"), map_and_vector),
    "LesionViews": (lambda: mtlkit.nn.LesionViews(1), lambda b, h, w: (torch.rand(b, 3, h, w), torch.ones(b, 1, h, w))),
    "Mamba": (lambda: mtlkit.nn.Mamba(8, 4, bimamba_type="v3", nslices=2), tokens),
    "Mlp": (lambda: mtlkit.nn.Mlp(8, 16), last()),
    "MultiScaleFusion": (lambda: mtlkit.nn.MultiScaleFusion(16), first(16)),
    "PatchEmbed": (lambda: mtlkit.nn.PatchEmbed(3, 8), first(3)),
    "PatchMerging": (lambda: mtlkit.nn.PatchMerging(8), last()),
    "Permute": (lambda: mtlkit.nn.Permute(0, 3, 1, 2), last()),
    "ResidualBlock": (lambda: mtlkit.nn.ResidualBlock(8, 16), first(8)),
    "SS2D": (lambda: mtlkit.nn.SS2D(8, 4), last()),
    "SSConvSSM": (lambda: mtlkit.nn.SSConvSSM(16, 4), last(16)),
    "SeparableConv": (lambda: mtlkit.nn.SeparableConv(8, 16, dilation=2), first(8)),
    "TaskInteraction": (lambda: mtlkit.nn.TaskInteraction(8, 16), map_and_vector),
    "UncertaintyProxyAttention": (lambda: mtlkit.nn.UncertaintyProxyAttention(8, 16), maps_and_vectors),
    "VSSBlock": (lambda: mtlkit.nn.VSSBlock(8), last()),
}  # fmt: skip


def test_no_layer_is_missing():
    assert set(LAYERS) == set(mtlkit.nn.__all__)


def compile_and_call(module: nn.Module, calls: list[Arguments]) -> None:
    """Compiled as one full graph: the calls after the first must not recompile."""
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for i, arguments in enumerate(calls):
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            got = compiled(*arguments)
        assert_same(got, module(*arguments))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compile_whole_and_once(name):
    make, sizes = LAYERS[name]
    compile_and_call(make().eval(), [sizes(2, 9, 14), sizes(3, 12, 17)])


# mtl_oca has the encoder and padding of btinet, and is compiled at one size in tests/models/test_smoke.py; the stages
# of vm_unet are those of vmamba_t_v0, twice
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("mtl_oca", "vm_unet")])
def test_models_compile_whole_and_once(name):
    compile_and_call(network(name), [arguments_of(name, 2, 90, 72), arguments_of(name, 3, 78, 101)])


def test_an_accelerated_model_compiles_whole_and_once():
    # sizes divisible by the patches: this model handles even and odd maps differently, which would need two graphs
    model = accelerated(MedMamba(3, (1, 1), (8, 16), 4).eval())
    compile_and_call(model, [(torch.rand(b, 3, h, w),) for b, h, w in ((2, 64, 80), (3, 96, 64))])


def test_training_compiles_with_inductor():
    layer, x = mtlkit.nn.VSSBlock(8, mlp_ratio=0.0), torch.randn(2, 7, 9, 8, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    found = []
    for run in (layer, compiled):
        y = run(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
        layer.zero_grad()
        x.grad = None
    assert_same(found[1], found[0])


# --- torch.export -----------------------------------------------------------------------------------------------------

FACTOR = {"medmamba_t": 8, "vmamba_t_v0": 8, "vm_unet": 8, "hybrid_vssm": 16}  # height and width are multiples of this


def dynamic_shapes(name: str) -> tuple:
    batch, factor = Dim("batch", min=2), FACTOR.get(name, 32)
    height, width = (factor * Dim(letter, min=64 // factor, max=512 // factor) for letter in "hw")
    if name == "hybrid_vssm":
        return {0: batch, 3: height, 4: width}, {0: batch}
    image = {0: batch, 2: height, 3: width}
    return (image, image) if name == "csa_moe" else (image,)


@pytest.mark.parametrize("name", MODELS)
def test_models_export(name):
    model = network(name)
    exported = torch.export.export(model, arguments_of(name, 2, 96, 64), dynamic_shapes=dynamic_shapes(name))
    other = arguments_of(name, 3, 64, 128)
    assert_same(exported.module()(*other), model(*other))


def test_an_accelerated_model_exports():
    model = accelerated(MedMamba(3, (1, 1), (8, 16), 4).eval())
    exported = torch.export.export(model, (torch.rand(2, 3, 32, 32),), dynamic_shapes=({0: Dim("batch")},))
    images = torch.rand(3, 3, 32, 32)
    assert_same(exported.module()(images), model(images))


# --- ONNX -------------------------------------------------------------------------------------------------------------


def assert_runs_in_onnxruntime(model: nn.Module, size: int, folder: Path) -> None:
    """Exports plain PyTorch with a dynamic batch, and runs it in another runtime: equal up to 1e-5."""
    path = folder / "model.onnx"
    with mtlkit.use_backend("torch"), torch.no_grad():
        images = torch.rand(2, 3, size, size)
        program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=({0: Dim("batch")},), verbose=False)
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 3):
        images = torch.rand(batch, 3, size, size)
        got = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            expected = tensors_of(model(images))
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(g), e, rtol=1e-4, atol=1e-5)


def test_medmamba_in_onnx(tmp_path):
    assert_runs_in_onnxruntime(network("medmamba_t"), 32, tmp_path)


def test_btinet_in_onnx(tmp_path):
    assert_runs_in_onnxruntime(network("btinet"), 64, tmp_path)


# --- AOTInductor ------------------------------------------------------------------------------------------------------

LOAD = """
import sys
import torch
import mtlkit.ops  # the package calls mtlkit's operators
run = torch._inductor.aoti_load_package(sys.argv[1])
images, expected = torch.load(sys.argv[2])
with torch.no_grad():
    for batch in (1, 2, 3):
        torch.testing.assert_close(run(images[:batch]), expected[:batch], rtol=1e-4, atol=1e-5)
print("agrees")
"""


def test_package_runs_in_a_fresh_process(run_python, tmp_path):
    model = create_model("vmamba_t_s1l8", num_classes=3, depths=(1,), dims=(8,)).eval()
    images, package, expected = torch.rand(3, 3, 32, 24), tmp_path / "model.pt2", tmp_path / "expected.pt"
    with torch.no_grad():
        exported = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch")},))
        torch._inductor.aoti_compile_and_package(exported, package_path=str(package))
        torch.save((images, model(images)), expected)
    process = run_python("-c", LOAD, str(package), str(expected))
    assert process.stdout == "agrees\n", process.stderr


# --- operators --------------------------------------------------------------------------------------------------------


class Recorder(Interpreter):
    """Runs a graph and records each call of an operator of mtlkit."""

    def __init__(self, graph: GraphModule, calls: dict[str, tuple]) -> None:
        super().__init__(graph)
        self.calls = calls

    def call_function(self, target: Any, arguments: tuple, options: dict) -> Any:
        if getattr(target, "namespace", None) == "mtlkit":
            kept = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), arguments)
            self.calls[target.name()] = (target, kept, options)
        return super().call_function(target, arguments, options)


def recorded_calls() -> dict[str, tuple]:
    """A call of every operator, forward and backward, with the arguments of compiled layers."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    calls: dict[str, tuple] = {}

    def compiler(graph: GraphModule, _inputs: list) -> Callable:
        return make_boxed_func(lambda *arguments: Recorder(graph, calls).run(*arguments))

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    for name in ("SS2D", "Mamba", "InteractionLevel"):
        make, sizes = LAYERS[name]
        torch._dynamo.reset()
        arguments = [argument.requires_grad_() for argument in sizes(2, 3, 5)]
        outputs = tensors_of(torch.compile(make(), fullgraph=True, backend=backend)(*arguments))
        sum(output.square().sum() for output in outputs).backward()
    u, rows, A = torch.randn(2, 4, 9), torch.randn(2, 2, 9), -torch.rand(4, 2)
    scale = torch.ops.mtlkit.interaction_scale  # compiled layers leave this to the compiler
    for function, tensors in (
        (mtlkit.selective_scan_fn, (u, u, A, rows, rows)),
        (mtlkit.ops.ss2d, SS2DShape(2, 3, 4, 5, 4, 2).inputs().values()),
        (mtlkit.ops.depthwise_conv2d, (torch.randn(2, 4, 6, 5), torch.randn(4, 1, 5, 5), torch.randn(4))),
        (mtlkit.ops.norm_gate, (torch.randn(3, 6), torch.randn(6), torch.randn(6), torch.randn(3, 6))),
        (lambda x, factors: scale("cpu", x, factors), (torch.randn(2, 3, 4, 5), torch.randn(2, 3))),
    ):
        torch._dynamo.reset()
        leaves = [t.detach().requires_grad_() for t in tensors]
        torch.compile(function, fullgraph=True, backend=backend)(*leaves).sum().backward()
    return calls


def test_every_operator_passes_opcheck():
    """Except the decoding steps, which tests/operators/test_step.py checks."""
    calls = recorded_calls()
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mtlkit::")}
    assert set(calls) == {
        name for name in registered if not getattr(torch.ops.mtlkit, name[8:]).default._schema.is_mutable
    }
    for name, (target, arguments, options) in calls.items():
        backward = name.endswith("_backward")
        wanted = [
            a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() and not backward else a
            for a in arguments
        ]
        torch.library.opcheck(target, tuple(wanted), options)


# --- unsupported ------------------------------------------------------------------------------------------------------


def test_vmap_raises():
    layer, x = mtlkit.nn.SS2D(8, 4), torch.randn(3, 2, 5, 4, 8)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(layer)(x)
    u, rows, A = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 2, 5), -torch.rand(4, 2)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda u, rows: mtlkit.selective_scan_fn(u, u, A, rows, rows))(u, rows)


@pytest.mark.parametrize("name", ["SS2D", "VSSBlock", "SSConvSSM"])
def test_a_second_backward_raises(name):
    make, sizes = LAYERS[name]
    (x,) = sizes(2, 3, 5)
    (gradient,) = torch.autograd.grad(make()(x.requires_grad_()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"has first-order gradients only; use mtlkit.use_backend\('torch'\)"):
        gradient.sum().backward()
