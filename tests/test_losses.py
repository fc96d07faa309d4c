"""Losses compared with published values, closed forms and torch; gradients by finite differences; invalid input."""

import json

import pytest
import torch
import torch.nn.functional as F

from mtlkit import losses
from mtlkit.losses import TVERSKY_PRESETS, SegmentationLoss, TverskyOptions


@pytest.fixture(scope="module")
def golden(root):
    values = json.loads((root / "tests/golden/golden_mtl_bus.json").read_text())["losses"]
    out = values["out"]

    def logit(p):
        return torch.special.logit(torch.tensor(p, dtype=torch.float64), eps=1e-7).float()

    return {
        "logits": logit(values["y_pred"]),
        "mask": torch.tensor(values["y_true"]),
        "class_logits": torch.tensor(values["clf_prob"]).log(),
        "labels": torch.tensor(values["clf_label"]),
        "out": {name: torch.tensor(value) for name, value in out.items()},
    }


@pytest.fixture
def case():
    """Logits and masks (3, 1, 9, 12); the last mask is empty."""
    logits = torch.randn(3, 1, 9, 12, dtype=torch.float64)
    mask = torch.zeros(3, 1, 9, 12, dtype=torch.float64)
    mask[0, :, 2:6, 3:9] = 1
    mask[1, :, 5:7, 1:4] = 1
    return logits, mask


def close(got, expected):
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=1e-5, atol=1e-5)


# --- golden values ----------------------------------------------------------------------------------------------------


def test_golden_segmentation(golden):
    logits, mask, out = golden["logits"], golden["mask"], golden["out"]
    close(losses.tversky_index(logits, mask, "mbdi_code"), out["tversky_0.5_0.5"])
    close(losses.tversky_index(logits, mask, "mbdi"), out["tversky_fp0.3_fn0.7"])
    close(losses.focal_tversky_loss(logits, mask, "mbdi_code"), out["focal_tversky_mean"])
    close(losses.curvature_kernel(), out["curvature_kernel_5x5"])
    close(losses.boundary_loss(logits, mask, soft=False), out["boundary"])
    close(losses.texture_loss(logits, mask), out["texture"])
    close(SegmentationLoss("mbdi_code", soft_boundary=False)(logits, mask), out["seg_total"])


def test_golden_classification(golden):
    close(losses.focal_cross_entropy(golden["class_logits"], golden["labels"]), golden["out"]["focal_ce"])


def test_golden_second_stage(golden):
    out = golden["out"]
    segmentation = SegmentationLoss("mbdi_code", soft_boundary=False)(golden["logits"], golden["mask"])
    difficulty = losses.segmentation_difficulty(golden["logits"], golden["mask"])
    close(segmentation + losses.gate_loss(out["w_seg"], difficulty), out["stage2_seg_loss_lambda1"])
    classification = losses.focal_cross_entropy(golden["class_logits"], golden["labels"])
    difficulty = losses.classification_difficulty(golden["class_logits"])
    close(classification + losses.gate_loss(out["w_clf"], difficulty), out["stage2_clf_loss_lambda1"])


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_curvature_kernel():
    for size in (3, 5, 9):
        kernel = losses.curvature_kernel(size)
        assert abs(kernel.sum()) < 1e-15
        torch.testing.assert_close(kernel.abs().sum(), torch.tensor(1.0, dtype=torch.float64))
        torch.testing.assert_close(kernel.T, -kernel)


def test_equal_weights_and_gamma_1_are_the_dice_loss(case):
    logits, mask = case
    p = logits.sigmoid()
    dice = (2 * (p * mask).sum((1, 2, 3)) + 2e-7) / ((p + mask).sum((1, 2, 3)) + 2e-7)
    loss = losses.focal_tversky_loss(logits, mask, TverskyOptions(0.5, 0.5, gamma=1.0))
    torch.testing.assert_close(loss, 1 - dice.mean())


def test_abraham_counts_the_batch_as_one_image(case):
    logits, mask = case
    p = logits.sigmoid()
    tp, fp, fn = (p * mask).sum(), (p * (1 - mask)).sum(), ((1 - p) * mask).sum()
    expected = (1 - (tp + 1) / (tp + 0.7 * fn + 0.3 * fp + 1)) ** 0.75
    torch.testing.assert_close(losses.focal_tversky_loss(logits, mask, "abraham"), expected)


def test_empty_mask_teaches_only_when_smoothed(case):
    logits = case[0][2:].requires_grad_()
    for preset, teaches in (("mbdi", False), ("abraham", True)):
        (gradient,) = torch.autograd.grad(losses.focal_tversky_loss(logits, case[1][2:], preset), logits)
        assert gradient.isfinite().all()
        assert (gradient.abs().max() > 1e-4) == teaches, preset


def test_perfect_prediction_costs_nothing(case):
    mask = case[1][:2]
    logits = 80 * mask - 40
    assert losses.boundary_loss(logits, mask, soft=False) == 0
    assert losses.boundary_loss(logits, mask) < 1e-6
    assert losses.texture_loss(logits, mask) < 1e-6
    assert SegmentationLoss()(logits, mask) < 1e-4


def test_boundary_loss_by_hand():
    mask = torch.zeros(1, 1, 7, 7)
    mask[0, 0, 3, 3] = 1
    # a missed single pixel leaves the kernel itself: sum |K| = 1, divided by 49 pixels
    loss = losses.boundary_loss(torch.full_like(mask, -30), mask, soft=False)
    torch.testing.assert_close(loss, torch.tensor(1 / 49))


def test_only_the_soft_boundary_has_a_gradient(case):
    logits = case[0].requires_grad_()
    for soft in (True, False):
        (gradient,) = torch.autograd.grad(losses.boundary_loss(logits, case[1], soft=soft), logits)
        assert bool(gradient.any()) == soft


def test_size_boost_favours_small_lesions(case):
    logits, mask = case
    share = mask.mean((1, 2, 3))
    each = (1 - losses.tversky_index(logits, mask)) ** 0.75
    torch.testing.assert_close(
        losses.focal_tversky_loss(logits, mask, size_boost=True), (each * (1 + torch.exp(-10 * share))).mean()
    )


def test_focal_cross_entropy_is_cross_entropy_at_gamma_0():
    logits, labels = torch.randn(9, 4), torch.randint(-1, 4, (9,))
    labels[0] = 1
    torch.testing.assert_close(
        losses.focal_cross_entropy(logits, labels, gamma=0.0), F.cross_entropy(logits, labels, ignore_index=-1)
    )


def test_focal_cross_entropy_is_cut():
    logits, labels = torch.tensor([[40.0, 0.0]]), torch.tensor([1])
    assert losses.focal_cross_entropy(logits, labels) == 10
    assert losses.focal_cross_entropy(logits, labels, max_loss=None) == 40


@pytest.mark.parametrize("margin", [-0.01, 0.01])
def test_the_cut_is_where_it_is_said_to_be(margin):
    """The limit applies to each image, so that those below it keep their gradients."""
    logits = torch.tensor([[9.0, 0.0], [4.0, 0.0]], dtype=torch.float64, requires_grad=True)
    of_each = F.cross_entropy(logits, torch.tensor([1, 1]), reduction="none")
    cut = of_each[0].item() + margin
    loss = losses.focal_cross_entropy(logits, torch.tensor([1, 1]), gamma=0.0, max_loss=cut)
    wanted = (of_each[0].clamp_max(cut) + of_each[1]) / 2
    torch.testing.assert_close(loss, wanted)
    (got,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert got[0].any() == (margin > 0)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, logits)[0])


def test_weighted_cross_entropy_is_torchs():
    logits, labels, weight = torch.randn(20, 3), torch.randint(-1, 3, (20,)), torch.tensor([0.5, 1.0, 4.0])
    expected = F.cross_entropy(logits, labels, weight, ignore_index=-1)
    torch.testing.assert_close(losses.weighted_cross_entropy(logits, labels, weight), expected)


@pytest.mark.parametrize("loss", [losses.weighted_cross_entropy, losses.focal_cross_entropy])
def test_nothing_labelled(loss):
    logits = torch.randn(3, 2, requires_grad=True)
    value = loss(logits, torch.full((3,), -1))
    value.backward()
    assert value == 0
    assert not logits.grad.any()
    assert loss(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)) == 0


def test_class_weights():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 1 + [-1] * 5)
    weight = losses.class_weights(labels, 3)
    torch.testing.assert_close(weight, torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    # each class then has the same weight
    torch.testing.assert_close(weight * torch.tensor([6.0, 3, 1]), torch.full((3,), 10 / 3))


def test_difficulty_runs_from_easy_to_hard():
    mask = torch.ones(3, 1, 4, 4)
    logits = torch.stack([3 * mask[0], 0 * mask[0], -3 * mask[0]]).requires_grad_()
    difficulty = losses.segmentation_difficulty(logits, mask)
    assert not difficulty.requires_grad
    iou = logits.detach().sigmoid()[:, 0, 0, 0]
    torch.testing.assert_close(difficulty, 1 - (iou - iou[2]) / (iou[0] - iou[2]), atol=2e-6, rtol=0)
    assert losses.segmentation_difficulty(logits[:1], mask[:1]) > 0.999
    assert losses.classification_difficulty(torch.tensor([[0.0, 5.0]])) > 0.999


def test_gate_loss_accepts_levels_in_either_form():
    gates, difficulty = torch.rand(4, 5), torch.rand(5)
    expected = F.binary_cross_entropy(gates, difficulty.expand(4, 5))
    torch.testing.assert_close(losses.gate_loss(gates, difficulty), expected)
    torch.testing.assert_close(losses.gate_loss([w[:, None] for w in gates], difficulty), expected)


# --- gradients, precision, compilation --------------------------------------------------------------------------------

SEGMENTATION = {
    "tversky mbdi": lambda z, g: losses.focal_tversky_loss(z, g),
    "tversky abraham": lambda z, g: losses.focal_tversky_loss(z, g, "abraham"),
    "boundary": lambda z, g: losses.boundary_loss(z, g),
    "texture": lambda z, g: losses.texture_loss(z, g),
    "total": SegmentationLoss(),
}


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_gradients(name, case):
    logits, mask = case
    assert torch.autograd.gradcheck(lambda z: SEGMENTATION[name](z, mask), logits.requires_grad_())


@pytest.mark.parametrize("loss", [losses.focal_cross_entropy, losses.weighted_cross_entropy])
def test_classification_gradients(loss):
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(z, torch.tensor([0, 1, 2, -1, 1])), logits)


def test_gate_gradients():
    gates = torch.rand(4, 3, dtype=torch.float64).mul(0.9).add(0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: losses.gate_loss(w, torch.tensor([0.1, 0.5, 1.0])), gates)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside(dtype, case):
    logits, mask = case[0].to(dtype), case[1]
    for loss in SEGMENTATION.values():
        expected = loss(logits.float(), mask)
        got = loss(logits, mask.bool())
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(logits, mask), expected)


def test_compiles_whole(case):
    logits, mask = case

    def total(z, g, classes, labels):
        loss = SegmentationLoss()(z, g) + losses.focal_cross_entropy(classes, labels)
        return loss + losses.gate_loss(classes.sigmoid().T, losses.segmentation_difficulty(z, g))

    inputs = (logits, mask, torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, -1, 1]))
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), total(*inputs))


def test_nan_shows(case):
    logits = case[0].clone()
    logits[0, 0, 0, 0] = float("nan")
    for soft in (True, False):
        assert losses.boundary_loss(logits, case[1], soft=soft).isnan()
    assert SegmentationLoss()(logits, case[1]).isnan()


# --- several processes ------------------------------------------------------------------------------------------------

# The loss of 3 and of 2 images of a batch, and the gradients that DDP would compute from them.
WORK = """
import torch
from mtlkit import losses
from mtlkit._distributed import all_processes

def work(rank, given):
    part = slice(3 * rank, 3 + 2 * rank)
    found = {}
    for name, (call, grouped) in given["calls"].items():
        tensors = {key: value[part].clone() for key, value in given["tensors"].items()}
        for key in ("masks", "classes"):
            tensors[key].requires_grad_()
        among = {"group": all_processes()} if grouped else {}
        loss = eval(call, {"losses": losses, "weight": given["weight"], "among": among} | tensors)
        loss.backward()
        found[name] = loss.detach(), [tensors[key].grad for key in ("masks", "classes")]
    return found
"""
CALLS = {
    "mbdi": "losses.SegmentationLoss()(masks, target, **among)",
    "some masks": "losses.SegmentationLoss()(masks, target, known=known, **among)",
    "masks in one process": "losses.SegmentationLoss()(masks, target, known=half, **among)",
    "abraham": "losses.focal_tversky_loss(masks, target, 'abraham', **among)",
    "abraham, some masks": "losses.focal_tversky_loss(masks, target, 'abraham', known=known, **among)",
    "focal cross-entropy": "losses.focal_cross_entropy(classes, labels, **among)",
    "weighted cross-entropy": "losses.weighted_cross_entropy(classes, labels, weight, **among)",
    "hard masks": "(masks.mean((1, 2, 3)) * losses.segmentation_difficulty(masks, target, **among)).sum()",
    "hard classes": "(classes.mean(1) * losses.classification_difficulty(classes, **among)).sum()",
}
SUMS = ("hard masks", "hard classes")


def test_two_processes_are_as_one(two_processes):
    """A batch in two unequal parts: equal to the complete batch with a process group, otherwise separate."""
    tensors = {
        "masks": torch.randn(5, 1, 8, 8, dtype=torch.float64),
        "target": (torch.rand(5, 1, 8, 8) > 0.7).double(),
        "classes": torch.randn(5, 3, dtype=torch.float64),
        "labels": torch.tensor([-1, -1, 2, 1, 0]),
        "known": torch.tensor([True, False, True, False, True]),
        "half": torch.tensor([True, True, False, False, False]),
    }
    weight = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    calls = {f"{name}, {grouped}": (call, grouped) for name, call in CALLS.items() for grouped in (True, False)}
    both = two_processes(WORK, {"calls": calls, "tensors": tensors, "weight": weight})
    for name, call in CALLS.items():
        whole = {key: value.clone().requires_grad_(key in ("masks", "classes")) for key, value in tensors.items()}
        expected = eval(call, {"losses": losses, "weight": weight, "among": {}} | whole)
        gradients = torch.autograd.grad(expected, [whole["masks"], whole["classes"]], allow_unused=True)
        for grouped in (True, False):
            (a, first), (b, second) = (found[f"{name}, {grouped}"] for found in both)
            got = a + b if name in SUMS else (a + b) / 2  # a difficulty is not a loss: the test adds it up
            same = [bool(torch.isclose(got, expected, rtol=1e-12))]
            for gradient, mine, other in zip(gradients, first, second, strict=True):
                if gradient is not None:
                    total = torch.cat([mine, other]) / (1 if name in SUMS else 2)
                    same.append(torch.allclose(total, gradient, rtol=1e-9, atol=1e-15))
            assert all(same) == grouped, (name, grouped, same)


# --- bad input --------------------------------------------------------------------------------------------------------

Z, G, K, Y = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.tversky_index(Z[:, 0], G), ValueError, "logits: expected 4 dimensions, got 3"),
        (lambda: losses.tversky_index(Z.repeat(1, 2, 1, 1), G), ValueError, r"logits: expected shape \(B, 1, H, W\)"),
        (lambda: losses.tversky_index(Z[:0], G[:0]), ValueError, "at least one pixel"),
        (lambda: losses.boundary_loss(Z, G[:1]), ValueError, r"target: expected shape .* \(2, 1, 4, 4\), got \(1,"),
        (lambda: losses.texture_loss(Z.int(), G), TypeError, "logits: expected a floating-point tensor, got torch.int"),
        (lambda: losses.texture_loss(Z, G, known=Y), TypeError, "known: expected a bool tensor, got torch.int64"),
        (
            lambda: losses.boundary_loss(Z, G, known=Y[:1] > 0),
            ValueError,
            r"known: expected shape \(B,\) = \(2,\)",
        ),
        (lambda: losses.texture_loss(Z, None), TypeError, "target: expected a tensor.*got NoneType"),
        (lambda: losses.focal_tversky_loss(Z, G, "paper"), ValueError, "tversky: .*mbdi_code, abraham, got 'paper'"),
        (lambda: losses.focal_tversky_loss(Z, G, "abraham", size_boost=True), ValueError, "size_boost"),
        (lambda: TverskyOptions(fp_weight=-1), ValueError, "fp_weight: expected a number that is at least 0, got -1"),
        (lambda: TverskyOptions(gamma=0), ValueError, "gamma: expected a number above 0, got 0"),
        (lambda: SegmentationLoss(texture_weight=-0.1), ValueError, "texture_weight: .*got -0.1"),
        (lambda: losses.curvature_kernel(4), ValueError, "size: expected an odd number that is at least 3, got 4"),
        (lambda: losses.curvature_kernel(5, 0.0), ValueError, "sigma: expected a number above 0"),
        (
            lambda: losses.focal_cross_entropy(K, Y.int()),
            TypeError,
            "labels: expected an int64 tensor, got torch.int32",
        ),
        (lambda: losses.focal_cross_entropy(K, Y[:1]), ValueError, r"labels: expected shape \(B,\) = \(2,\), got \(1,"),
        (lambda: losses.focal_cross_entropy(K, Y, gamma=-1), ValueError, "gamma: .*got -1"),
        (lambda: losses.weighted_cross_entropy(K[:, :1], Y), ValueError, "at least 2 classes"),
        (lambda: losses.weighted_cross_entropy(K, Y, K[0, :2]), ValueError, r"weight: expected shape \(K,\) = \(3,\)"),
        (lambda: losses.class_weights(Y, 2), ValueError, "labels: there is no example of class 1"),
        (lambda: losses.class_weights(Y + 5, 2), ValueError, "labels: expected 0 to 1, got 5 to 5"),
        (lambda: losses.gate_loss([], K[:, 0]), ValueError, "gates: expected at least one level, got none"),
        (lambda: losses.gate_loss([K], K[:, 0]), ValueError, r"gates\[0\]: expected shape \(2,\) or \(2, 1\), got"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_presets_are_the_published_numbers():
    rows = {name: (o.fp_weight, o.fn_weight, o.gamma, o.smooth, o.per_image) for name, o in TVERSKY_PRESETS.items()}
    assert rows == {
        "mbdi": (0.3, 0.7, 0.75, 1e-7, True),
        "mbdi_code": (0.5, 0.5, 0.75, 1e-7, True),
        "abraham": (0.3, 0.7, 0.75, 1.0, False),
    }


def test_repr():
    shown = repr(SegmentationLoss(boundary_weight=0.25))
    assert "TverskyOptions(" in shown
    assert "boundary_weight=0.25, texture_weight=" in shown
