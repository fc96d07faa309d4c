"""Tests specific to task interaction; test_matrix.py has those that all operators share."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mtlkit
from harness.layouts import repeated, spread
from mtlkit import _native, ops
from mtlkit.operators.interaction import reduce
from mtlkit.operators.interaction.level import WHOLE
from mtlkit.ops import TIMParameters, UPAParameters
from mtlkit.testing import InteractionInputs, InteractionShape, assert_accurate

GOLDEN = json.loads((Path(__file__).resolve().parents[2] / "golden" / "golden_mtl_bus.json").read_text())
BACKENDS = ["reference", "torch", "cpu"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
SIGNALS = ["variance", "alignment"]

needs_cpu_backend = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")


def shape_of(sizes: tuple[int, ...], signals="variance", attention=False) -> InteractionShape:
    return InteractionShape(*sizes, F=12, signals=signals, attention=attention)


def by_name(out: ops.InteractionOutput) -> dict[str, Tensor]:
    found = {name: value for name, value in out._asdict().items() if isinstance(value, Tensor)}
    return found | {f"stats_{name}": value for name, value in out.stats._asdict().items()}


def level(inputs: InteractionInputs, signals: str, **options) -> dict[str, Tensor]:
    """The results of `task_interaction`, by name."""
    return by_name(ops.task_interaction(*inputs, signals=signals, **options))


def composed(inputs: InteractionInputs, signals: str, return_enhanced=True, normaliser=None, **options):
    """The same computation by the two modules in turn, with the enhanced map between them."""
    x, f, tim, upa = inputs
    enhanced = ops.tim(x, f, tim, **options)
    out = ops.upa(x, enhanced.seg, f, enhanced.clf, upa, signals=signals, normaliser=normaliser)
    return by_name(out if return_enhanced else out._replace(enhanced_seg=None))


def leaves(inputs: InteractionInputs, dtype: torch.dtype | None = None) -> InteractionInputs:
    """The same values, detached from any graph, with unchanged layouts."""

    def leaf(t: Tensor | None, grad: bool = True) -> Tensor | None:
        return None if t is None else t.detach().to(dtype or t.dtype).clone().requires_grad_(grad)

    tim = TIMParameters(**{n: leaf(t, not n.startswith(("norm_m", "norm_v"))) for n, t in inputs.tim._asdict().items()})
    x = inputs.x.detach()
    x = x if dtype is None or dtype == x.dtype else x.to(dtype)
    return InteractionInputs(x.requires_grad_(), leaf(inputs.f), tim, UPAParameters(*map(leaf, inputs.upa)))


def run(backend: str, inputs: InteractionInputs, call: Callable = level, **options) -> dict[str, Tensor]:
    """Outputs, and the gradient of every tensor through all of them, by name."""
    inputs = leaves(inputs)
    with mtlkit.use_backend(backend):
        outputs = call(inputs, **options)
    cotangents = []
    for i, value in enumerate(outputs.values()):
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        cotangents.append(noise.to(value.dtype))
    tensors = inputs.named_tensors()
    gradients = torch.autograd.grad(list(outputs.values()), list(tensors.values()), cotangents)
    found = {name: value.detach() for name, value in outputs.items()}
    return found | {f"d{name}": g for name, g in zip(tensors, gradients, strict=True)}


def compare(got: dict[str, Tensor], exact: dict[str, Tensor], plain: dict[str, Tensor] | None = None) -> None:
    assert got.keys() == exact.keys()
    for name, value in got.items():
        plain_value = None if plain is None else plain[name]
        assert_accurate(name, value, exact[name], plain_value, gradient=name not in ("seg", "clf"))


def check(inputs: InteractionInputs, backend: str = "cpu", call: Callable = level, **options) -> dict[str, Tensor]:
    """Compares the backend with the reference in float64; vectors and signals use the bounds for gradients."""
    got = run(backend, inputs, call, **options)
    exact = run("reference", leaves(inputs, torch.float64), level, **options)
    half = inputs.x.dtype in (torch.bfloat16, torch.float16)
    compare(got, exact, run("torch", inputs, call, **options) if half else None)
    return got


# --- golden values ----------------------------------------------------------------------------------------------------


def golden(name: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], ...]:
    entry = GOLDEN[name]
    weights = {w["name"]: torch.tensor(w["value"], dtype=dtype).reshape(w["shape"]) for w in entry["weights"]}
    return weights, *({n: torch.tensor(v, dtype=dtype) for n, v in entry[k].items()} for k in ("inputs", "outputs"))


def golden_tim(dtype: torch.dtype) -> TIMParameters:
    w, _, _ = golden("tim", dtype)
    names = ("s2c_conv", "s2c_dense", "clf_gate", "c2s_dense", "seg_gate")
    norm = (w[f"s2c_bn.{name}"] for name in ("gamma", "beta", "running_mean", "running_var"))
    return TIMParameters(*(w[f"{name}.{kind}"] for name in names for kind in ("weight", "bias")), *norm)


def golden_upa(name: str, dtype: torch.dtype) -> UPAParameters:
    w, _, _ = golden(name, dtype)
    layers = (w[f"fc{i}.{kind}"] for i in (1, 2) for kind in ("weight", "bias"))
    return UPAParameters(*layers, w.get("seg_proj.weight"), w.get("clf_proj.weight"))


def assert_golden(got: Tensor, want: Tensor) -> None:
    assert (got.flatten() - want.flatten()).abs().max() <= 1e-5


@needs_cpu_backend
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
class TestGolden:
    def test_tim(self, backend, dtype, memory_format):
        _, given, want = golden("tim", dtype)
        with mtlkit.use_backend(backend):
            x = given["seg"].contiguous(memory_format=FORMATS[memory_format])
            out = ops.tim(x, given["clf"], golden_tim(dtype))
        assert_golden(out.seg, want["seg_enh"])
        assert_golden(out.clf, want["clf_enh"])

    @pytest.mark.parametrize("signals", SIGNALS)
    def test_upa(self, backend, dtype, memory_format, signals):
        name = "upa_v1" if signals == "variance" else "upa_v2"
        _, given, want = golden(name, dtype)
        upa = golden_upa(name, dtype)
        with mtlkit.use_backend(backend):
            maps = (given[n].contiguous(memory_format=FORMATS[memory_format]) for n in ("seg", "seg_enh"))
            out = ops.upa(next(maps), next(maps), given["clf"], given["clf_enh"], upa, signals=signals)
            fused = ops.task_interaction(given["seg"], given["clf"], golden_tim(dtype), upa, signals=signals)
        for found in (out, fused):
            assert_golden(found.seg, want["seg_final"])
            assert_golden(found.clf, want["clf_final"])
            stats = ("u_seg", "u_clf") if signals == "variance" else ("align", "seg_energy", "clf_energy")
            for value, key in zip(found.stats, stats, strict=True):
                assert_golden(value, want[key])
            if signals == "alignment":
                assert_golden(found.gates, torch.stack((want["w_seg"], want["w_clf"]), 1))


# --- fused, composed, reference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("signals", SIGNALS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_equals_composed_equals_reference(backend, signals, attention):
    if backend == "cpu" and _native.C is None:
        pytest.skip(_native.why_not)
    inputs = shape_of((3, 24, 9, 6), signals, attention).inputs()
    options = {"signals": signals, "return_enhanced": True, "tau": 0.9}
    check(inputs, backend, **options)
    check(inputs, backend, composed, **options)
    if signals == "variance":
        options["normaliser"] = torch.tensor([0.8, 1.2])
        check(inputs, backend, **options)
        check(inputs, backend, composed, **options)


@needs_cpu_backend
@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_batch_normalisation_in_training(backend, dtype):
    inputs = shape_of((5, 12, 6, 6)).inputs(dtype)
    got, exact = [], []
    for name, found, work in ((backend, got, dtype), ("reference", exact, torch.float64)):
        given = leaves(inputs, work)
        with mtlkit.use_backend(name):
            out = ops.task_interaction(*given, training=True, momentum=0.25)
        (dx,) = torch.autograd.grad(out.clf.sum() + out.gates[:, 0].sum(), given.x)
        found += [out.clf, given.tim.norm_mean, given.tim.norm_var, dx]
    for value, want in zip(got, exact, strict=True):
        scale = want.abs().max()
        assert (value.double() - want).abs().max() <= (3e-2 if dtype == torch.bfloat16 else 1e-5) * scale
    assert not torch.equal(got[1], inputs.tim.norm_mean)


@needs_cpu_backend
@pytest.mark.parametrize("signals", SIGNALS)
def test_the_level_of_a_network(signals):
    check(InteractionShape(2, 96, 56, 56, signals=signals).inputs(memory_format=torch.channels_last), signals=signals)


@needs_cpu_backend
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(14, 14), (7, 7), (1, 1)])
def test_pixels_after_the_last_whole_vector(size, dtype, attention):
    check(InteractionShape(3, 32, *size, F=12, attention=attention).inputs(dtype), signals="variance")


@needs_cpu_backend
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("signals", SIGNALS)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_level_in_one_call_equals_its_parts(memory_format, signals, attention, monkeypatch):
    inputs = shape_of((2, 32, 7, 6), signals, attention).inputs(memory_format=FORMATS[memory_format])
    options = {"training": True} if signals == "alignment" else {"normaliser": torch.tensor([0.8, 1.2])}
    results = []
    with mtlkit.use_backend("cpu"), torch.no_grad():
        for parts in (False, True):
            if parts:
                monkeypatch.delitem(WHOLE, "cpu")
            given = leaves(inputs)
            statistics = {"mean": given.tim.norm_mean, "var": given.tim.norm_var}
            results.append(level(given, signals, **options) | statistics)
    assert results[0]["seg"].is_contiguous(memory_format=FORMATS[memory_format])
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@needs_cpu_backend
def test_a_column_of_pixels_with_any_strides():
    """A dimension of size 1 may have any stride in a contiguous tensor."""
    inputs = shape_of((2, 16, 1, 5)).inputs()
    column = inputs._replace(x=inputs.x.detach().transpose(2, 3))
    assert column.x.is_contiguous()
    check(column, signals="variance")
    with torch.no_grad():
        found, want = level(column, "variance"), level(column._replace(x=column.x.clone()), "variance")
    for name, value in found.items():
        assert torch.equal(value, want[name]), name


@needs_cpu_backend
@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradient_of_the_map_in_another_layout(memory_format):
    inputs = shape_of((2, 18, 6, 5)).inputs()
    results = []
    for layout in FORMATS.values():
        given = leaves(inputs._replace(x=inputs.x.contiguous(memory_format=FORMATS[memory_format])))
        with mtlkit.use_backend("cpu"):
            seg = ops.task_interaction(*given).seg
        dy = torch.randn(seg.shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
        results.append(torch.autograd.grad(seg, given.x, dy)[0])
    assert torch.equal(*results)


@needs_cpu_backend
def test_mixed_dtypes():
    inputs = shape_of((2, 18, 6, 5), "alignment").inputs(torch.bfloat16)
    tim = TIMParameters(*(None if t is None else t.float() for t in inputs.tim))
    got = run("cpu", inputs._replace(tim=tim, f=inputs.f.half()), signals="alignment")
    exact = run("reference", leaves(inputs, torch.float64), signals="alignment")
    assert got["seg"].dtype == got["dx"].dtype == torch.bfloat16
    assert got["clf"].dtype == got["df"].dtype == torch.float16
    assert got["gates"].dtype == got["dproj_weight"].dtype == torch.float32
    for name in ("gates", "stats_energy"):
        assert_accurate(name, got[name], exact[name], gradient=True)


@needs_cpu_backend
@pytest.mark.parametrize("frozen", ["x", "parameters", "projection", "all but gates"])
def test_what_needs_no_gradient_gets_none(frozen):
    inputs = shape_of((2, 18, 6, 5)).inputs()
    exact = run("cpu", inputs, signals="variance")
    given = leaves(inputs)
    off = {
        "x": ["x"],
        "parameters": [n for n in given.named_tensors() if n != "x"],
        "projection": ["proj_weight", "proj_bias"],
        "all but gates": [n for n in given.named_tensors() if not n.startswith("fc")],
    }[frozen]
    tensors = given.named_tensors()
    for name in off:
        tensors[name].requires_grad_(False)
    with mtlkit.use_backend("cpu"):
        outputs = level(given, "variance")
    wanted = {n: t for n, t in tensors.items() if t.requires_grad}
    depends = {n: o for n, o in outputs.items() if o.requires_grad}
    cotangents = [
        torch.randn(o.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64).to(o.dtype)
        for i, (n, o) in enumerate(outputs.items())
        if n in depends
    ]
    got = torch.autograd.grad(list(depends.values()), list(wanted.values()), cotangents)
    for name, value in zip(wanted, got, strict=True):
        torch.testing.assert_close(value, exact[f"d{name}"], rtol=1e-5, atol=1e-6, msg=name)


@needs_cpu_backend
@pytest.mark.parametrize("output", ["seg", "clf", "gates", "stats"])
def test_gradient_from_one_output(output):
    inputs = shape_of((2, 18, 6, 5), "alignment").inputs()
    found = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        given = leaves(inputs, dtype)
        with mtlkit.use_backend(backend):
            out = getattr(ops.task_interaction(*given, signals="alignment"), output)
        out = torch.stack(tuple(out)) if output == "stats" else out
        found.append(torch.autograd.grad(out.square().sum(), given.x)[0])
    assert_accurate("dx", *found, gradient=True)


@needs_cpu_backend
@pytest.mark.parametrize("attention", [False, True])
def test_an_instruction_set_that_changes_before_the_backward_pass(attention):
    inputs, before = leaves(shape_of((2, 18, 6, 5), attention=attention).inputs()), _native.C.cpu_isa()
    gradients = []
    for level_name in _native.C.cpu_isa_levels():
        with mtlkit.use_backend("cpu"):
            loss = ops.task_interaction(*inputs).seg.square().sum()
        try:
            _native.C.set_cpu_isa(level_name)
            gradients.append(torch.autograd.grad(loss, inputs.x)[0])
        finally:
            _native.C.set_cpu_isa(before)
    for gradient in gradients:
        torch.testing.assert_close(gradient, gradients[-1], rtol=1e-4, atol=1e-5)


@needs_cpu_backend
@pytest.mark.parametrize("attention", [False, True])
def test_a_projection_of_exactly_0_has_no_gradient(attention):
    """As for PyTorch's ReLU at 0."""
    x, weight, bias = torch.randn(2, 6, 5, 7), torch.zeros(4, 6), torch.zeros(4)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    with mtlkit.use_backend("cpu"):
        pooled = ops.tim_pool(*leaves, torch.randn(6) if attention else None)
    assert not any(gradient.any() for gradient in torch.autograd.grad(pooled.sum(), leaves))


@needs_cpu_backend
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 33])
def test_sums_over_what_is_not_finite(value, place):
    """Equal to the reference's, wherever the non-finite value is: moments are computed around the first pixels."""
    x, weight, bias, attn = torch.randn(2, 6, 9, 8), torch.randn(4, 6), torch.randn(4), torch.randn(6)
    x[0, 2].view(-1)[place] = value
    arguments = reduce.Inputs(x, weight, bias, attn), reduce.Options(True, torch.float32)
    got = reduce.Reduced(*reduce.OPERATOR.run("cpu", *arguments))
    for name, exact in reduce.reduce_reference(*arguments[0], *arguments[1])._asdict().items():
        torch.testing.assert_close(getattr(got, name), exact, equal_nan=True, msg=name)


@needs_cpu_backend
def test_backward_twice_over_one_graph():
    inputs = leaves(shape_of((2, 18, 6, 5)).inputs())
    with mtlkit.use_backend("cpu"):
        y = ops.task_interaction(*inputs).seg.square().sum()
    first = torch.autograd.grad(y, inputs.x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y, inputs.x)[0])


# --- the parts --------------------------------------------------------------------------------------------------------


@needs_cpu_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_tim_pool(backend, attention, dtype):
    for sizes in ((2, 7, 3, 5), (1, 48, 20, 21)):
        tim = shape_of(sizes, attention=attention).inputs(dtype).tim
        x = shape_of(sizes).inputs(dtype).x
        found = []
        for name, work in ((backend, dtype), ("reference", torch.float64), ("torch", dtype)):
            tensors = [x, tim.proj_weight[..., None, None], tim.proj_bias, tim.attn_weight]
            given = [None if t is None else t.detach().to(work).requires_grad_() for t in tensors]
            with mtlkit.use_backend(name):
                pooled = ops.tim_pool(*given)
            present = [t for t in given if t is not None]
            found.append([pooled, *torch.autograd.grad(pooled.square().sum(), present)])
        for got, exact, plain in zip(*found, strict=True):
            assert_accurate("pooled and gradients", got, exact, plain, gradient=True)
        assert found[0][0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@needs_cpu_backend
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tim_modulate(dtype, memory_format):
    for sizes in ((3, 37, 9, 5), (2, 5, 1, 1), (1, 1, 70, 3)):
        inputs = shape_of(sizes).inputs(dtype, memory_format=FORMATS[memory_format])
        vectors = torch.rand(2, *sizes[:2], dtype=torch.float64).to(dtype)
        found = []
        for backend, work in (("cpu", dtype), ("reference", torch.float64), ("torch", dtype)):
            given = [t.detach().to(work).requires_grad_() for t in (inputs.x, *vectors)]
            with mtlkit.use_backend(backend):
                y = ops.tim_modulate(*given, tau=0.3)
            found.append([y, *torch.autograd.grad(y.square().sum(), given)])
        for got, exact, plain in zip(*found, strict=True):
            assert_accurate("map and gradients", got, exact, plain, gradient=True)
        assert found[0][0].is_contiguous(memory_format=FORMATS[memory_format])


def test_upa_gate_mixes():
    base, enhanced = torch.randn(3, 4, 5, 2), torch.randn(3, 4, 5, 2)
    got = ops.upa_gate(base, enhanced, torch.tensor([0.0, 1.0, 0.25]))
    torch.testing.assert_close(got[0], base[0])
    torch.testing.assert_close(got[1], enhanced[1])
    torch.testing.assert_close(got[2], 0.75 * base[2] + 0.25 * enhanced[2])


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
class TestProperties:
    @pytest.fixture(autouse=True)
    def _backend(self, backend):
        if backend == "cpu" and _native.C is None:
            pytest.skip(_native.why_not)
        with mtlkit.use_backend(backend):
            yield

    def test_mu_lies_between_1_and_1_plus_tau(self):
        inputs = shape_of((4, 24, 6, 6)).inputs()
        mu = ops.tim(inputs.x * 50, inputs.f * 50, inputs.tim).mu
        assert mu.min() >= 1
        assert mu.max() <= 1.7
        assert mu.max() > 1.65

    def test_tau_0_leaves_the_map(self):
        inputs = shape_of((2, 24, 6, 6)).inputs()
        assert torch.equal(ops.tim(inputs.x, inputs.f, inputs.tim, tau=0).seg, inputs.x)
        assert torch.equal(ops.task_interaction(*inputs, tau=0).seg, inputs.x)

    def test_a_shut_gate_leaves_the_vector(self):
        inputs = shape_of((2, 24, 6, 6)).inputs()
        tim = inputs.tim._replace(clf_gate_bias=torch.full((12,), -1e4))
        assert torch.equal(ops.tim(inputs.x, inputs.f, tim).clf, inputs.f)

    def test_end_points(self):
        inputs = shape_of((2, 24, 6, 6)).inputs()
        for bias, index in (((0, 1e4), 0), ((1e4, 0), 1)):
            upa = inputs.upa._replace(fc2_bias=torch.tensor(bias))
            out = ops.task_interaction(*inputs._replace(upa=upa), return_enhanced=True)
            torch.testing.assert_close(out.seg, (inputs.x, out.enhanced_seg)[index])
            torch.testing.assert_close(out.clf, (out.enhanced_clf, inputs.f)[index])

    def test_two_gates_sum_to_1_and_one_image_has_constant_ones(self):
        a, b = (shape_of((1, 24, 6, 6)).inputs(seed=seed) for seed in (0, 1))
        first, second = (ops.task_interaction(t.x, t.f, a.tim, a.upa) for t in (a, b))
        torch.testing.assert_close(first.gates.sum(1), torch.ones(1))
        torch.testing.assert_close(first.gates, second.gates)
        assert not torch.allclose(first.stats.seg, second.stats.seg)

    def test_the_batch_normaliser_couples_images_and_a_running_one_does_not(self):
        inputs = shape_of((4, 24, 6, 6)).inputs()
        order = torch.tensor([2, 0, 3, 1])
        louder = inputs.x * torch.tensor([1.0, 1.0, 5.0, 1.0]).view(4, 1, 1, 1)
        for normaliser, coupled in ((None, True), (torch.tensor([0.7, 1.3]), False)):

            def gates(x, f, normaliser=normaliser):
                return ops.task_interaction(x, f, inputs.tim, inputs.upa, normaliser=normaliser).gates

            alone = gates(inputs.x, inputs.f)
            torch.testing.assert_close(gates(inputs.x[order], inputs.f[order]), alone[order])
            assert torch.allclose(gates(louder, inputs.f)[0], alone[0]) != coupled

    def test_three_signals_do_not_depend_on_the_batch(self):
        inputs = shape_of((4, 24, 6, 6), "alignment").inputs()
        together = ops.task_interaction(*inputs, signals="alignment")
        alone = ops.task_interaction(inputs.x[2:3], inputs.f[2:3], inputs.tim, inputs.upa, signals="alignment")
        torch.testing.assert_close(together.seg[2:3], alone.seg)
        assert together.stats.alignment.abs().max() <= 1 + 1e-6

    def test_a_constant_map_has_no_energy_and_no_variance(self):
        x, f = torch.full((2, 24, 9, 7), 3.7), torch.randn(2, 12)
        inputs = shape_of((2, 24, 9, 7), "alignment").inputs()
        out = ops.task_interaction(x, f, inputs.tim, inputs.upa, signals="alignment")
        assert torch.equal(out.stats.energy, torch.zeros(2))
        assert ops.upa_stats(x, x, f, f).seg.abs().max() < 1e-12

    def test_energy_by_hand(self):
        x = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, -1.0]]).view(1, 1, 2, 3)  # across 1 2 0 3, down 2 1 4
        f, ones = torch.randn(1, 4), torch.ones(1, 4)
        stats = ops.upa_stats(x, x, f, f, "alignment", ones[:, :1], ones)
        torch.testing.assert_close(stats.energy, torch.tensor([13 / 6]))

    @pytest.mark.parametrize("memory_format", FORMATS)
    def test_a_large_mean_does_not_drown_the_variance(self, memory_format):
        x = (1e4 + 1e-2 * torch.randn(2, 24, 60, 50)).contiguous(memory_format=FORMATS[memory_format])
        f = torch.randn(2, 12)
        exact = x.double().var((2, 3), correction=0).mean(1)
        got = ops.upa_stats(x, x, f, f).seg
        assert ((got - exact) / exact).abs().max() < 1e-3

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("signals", SIGNALS)
    def test_what_is_not_finite_goes_on(self, signals, value):
        inputs = shape_of((3, 24, 6, 6), signals).inputs()
        inputs.x[1, 5, 2, 3] = value
        out = ops.task_interaction(*inputs, signals=signals)
        assert out.gates[1].isnan().all()
        assert out.seg[1].isnan().all()
        others = torch.tensor([0, 2])
        assert out.seg[others].isnan().all() == (signals == "variance")  # the batch mean couples the images
        assert out.seg[others].isfinite().all() == (signals == "alignment")


# --- torch's machinery ------------------------------------------------------------------------------------------------


@needs_cpu_backend
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("weight", "attention", "energy"), [(True, True, True), (True, False, False), (False, False, True)]
)
def test_opcheck(weight, attention, energy, memory_format):
    shape = shape_of((2, 6, 4, 5), attention=attention)
    inputs = shape.inputs(memory_format=FORMATS[memory_format], requires_grad=True)
    projection = inputs.tim[:2] if weight else (None, None)
    arguments = ("cpu", inputs.x, *projection, inputs.tim.attn_weight, energy, torch.float32, True)
    torch.library.opcheck(torch.ops.mtlkit.interaction_reduce.default, arguments)
    torch.library.opcheck(
        torch.ops.mtlkit.interaction_scale.default, ("cpu", inputs.x, torch.rand(2, 6, requires_grad=True))
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_the_vectors_alone(backend):
    if backend == "cpu" and _native.C is None:
        pytest.skip(_native.why_not)
    inputs = shape_of((3, 24, 6, 6), "alignment").inputs()
    with mtlkit.use_backend(backend):
        plain = level(inputs, "alignment")
        with torch.autocast("cpu", torch.bfloat16):
            cast = level(inputs, "alignment")
    for name, value in plain.items():
        assert torch.equal(value, cast[name]), name


@pytest.mark.parametrize("place", [spread(0), repeated(0), lambda t: torch._neg_view(-t)], ids=["spread", "one", "neg"])
def test_parameters_of_any_layout(place):
    """`ops.tim` uses PyTorch's batch normalisation, whose backward pass is right only for contiguous parameters."""
    inputs = InteractionShape(2, 6, 5, 4, 8).inputs(torch.float64)

    def results(tim: TIMParameters) -> list[Tensor]:
        x, f = (t.clone().requires_grad_() for t in inputs[:2])
        learnt = [t for t in tim if t is not None]
        wanted = [x, f, *(t.requires_grad_() for t in learnt[:12])]
        out = ops.tim(x, f, tim)
        return list(torch.autograd.grad(out.clf.square().sum() + out.seg.square().sum(), wanted))

    tim = inputs.tim._make(None if t is None else place(t.clone()) for t in inputs.tim)
    dense = tim._make(None if t is None else t.clone(memory_format=torch.contiguous_format) for t in tim)
    for got, want in zip(results(tim), results(dense), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
