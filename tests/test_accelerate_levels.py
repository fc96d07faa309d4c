"""accelerate: decoder levels of task interaction, restated in plain PyTorch with the published names of their parts."""

import copy

import pytest
import torch
from torch import Tensor, nn

import mtlkit
from harness.third_party_models import accelerated, perturbed

DIM, CLF_DIM = 6, 16


class PlainTIM(nn.Module):
    def __init__(self, attention: bool = False, tau: float = 0.7) -> None:
        super().__init__()
        self.tau = tau
        self.c2s_dense = nn.Linear(CLF_DIM, DIM)  # defined in another order than in mtlkit
        self.s2c_conv = nn.Conv2d(DIM, DIM // 2, 1)
        self.s2c_dense = nn.Linear(DIM // 2, CLF_DIM)
        self.s2c_bn = nn.BatchNorm1d(CLF_DIM, eps=1e-3, momentum=0.1)
        self.clf_gate = nn.Linear(CLF_DIM, CLF_DIM)
        self.seg_gate = nn.Linear(DIM, DIM)
        self.relu = nn.ReLU()
        if attention:
            self.s2c_attn = nn.Conv2d(DIM, 1, 1, bias=False)

    def pool(self, seg: Tensor, projected: Tensor) -> Tensor:
        if not hasattr(self, "s2c_attn"):
            return projected.mean((2, 3))
        weights = self.s2c_attn(seg).flatten(1).softmax(1)  # (B, L)
        return (projected.flatten(2) * weights[:, None]).sum(-1)

    def forward(self, seg: Tensor, clf: Tensor) -> tuple[Tensor, Tensor]:
        context = self.s2c_bn(self.relu(self.s2c_dense(self.pool(seg, self.relu(self.s2c_conv(seg))))))
        gate = torch.sigmoid(self.seg_gate(seg.mean((2, 3)))) * torch.sigmoid(self.c2s_dense(clf))
        return seg * (1 + self.tau * gate)[:, :, None, None], clf + torch.sigmoid(self.clf_gate(context)) * context


class PlainUPA(nn.Module):
    def __init__(self, three: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3 if three else 2, 32), nn.Linear(32, 2)
        if three:
            self.seg_proj, self.clf_proj = nn.Linear(DIM, 64, bias=False), nn.Linear(CLF_DIM, 64, bias=False)

    def weights(self, seg: Tensor, seg_new: Tensor, clf: Tensor, clf_new: Tensor) -> Tensor:
        if not hasattr(self, "seg_proj"):
            u = torch.stack((seg_new.flatten(2).var(-1, correction=0).mean(1), clf_new.var(1, correction=0)), 1)
            return self.fc2(torch.relu(self.fc1(u / (u.mean(0) + 1e-8)))).softmax(1)
        ours, theirs = self.seg_proj((seg_new - seg).mean((2, 3))), self.clf_proj(clf_new - clf)
        energy = sum(seg.diff(dim=d).abs().sum((1, 2, 3)) for d in (2, 3)) / seg[0].numel()
        spread = torch.log1p(clf_new.var(1, correction=0))
        signals = torch.stack((torch.cosine_similarity(ours, theirs), energy, spread), 1)
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(signals))))

    def forward(self, seg: Tensor, seg_new: Tensor, clf: Tensor, clf_new: Tensor) -> tuple[Tensor, Tensor]:
        w = self.weights(seg, seg_new, clf, clf_new)
        return seg + w[:, 0, None, None, None] * (seg_new - seg), clf + w[:, 1, None] * (clf_new - clf)


class PlainLevel(nn.Module):
    def __init__(self, three: bool = False, **options) -> None:
        super().__init__()
        self.tim, self.upa = PlainTIM(**options), PlainUPA(three)

    def forward(self, seg: Tensor, clf: Tensor) -> tuple[Tensor, Tensor]:
        seg_new, clf_new = self.tim(seg, clf)
        return self.upa(seg, seg_new, clf, clf_new)


class Decoder(nn.Module):
    """Two consecutive levels."""

    def __init__(self, make) -> None:
        super().__init__()
        self.levels = nn.ModuleList([make(), make()])

    def forward(self, seg: Tensor, clf: Tensor) -> tuple[Tensor, Tensor]:
        for level in self.levels:
            seg, clf = level(seg, clf)
        return seg, clf


LAYERS = {
    "tim": (PlainTIM, mtlkit.nn.TaskInteraction),
    "tim_attention": (lambda: PlainTIM(attention=True, tau=0.4), mtlkit.nn.TaskInteraction),
    "level_variance": (PlainLevel, mtlkit.nn.InteractionLevel),
    "level_three": (lambda: PlainLevel(three=True, attention=True), mtlkit.nn.InteractionLevel),
}


def results(model: nn.Module, seg: Tensor, clf: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients of inputs and parameters, and statistics, by name."""
    model.zero_grad()
    seg, clf = seg.detach().clone().requires_grad_(), clf.detach().clone().requires_grad_()
    outputs = model(seg, clf)
    generator = torch.Generator().manual_seed(1)
    torch.autograd.backward(outputs, [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in outputs])
    found = dict(zip(("seg", "clf"), (y.detach() for y in outputs), strict=True)) | {"dseg": seg.grad, "dclf": clf.grad}
    found |= {f"d{name}": p.grad.clone() for name, p in model.named_parameters()}
    return found | {name: b.double() for name, b in model.named_buffers() if b.is_floating_point()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_levels_compute_the_same(name, training):
    make, kind = LAYERS[name]
    model = perturbed(Decoder(make)).double().train(training)
    for level in model.levels:
        norm = level.tim.s2c_bn if hasattr(level, "tim") else level.s2c_bn
        norm.running_mean.uniform_(0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
    seg, clf = torch.randn(3, DIM, 5, 7, dtype=torch.float64), torch.randn(3, CLF_DIM, dtype=torch.float64)
    plain, parameters, keys = copy.deepcopy(model), dict(model.named_parameters()), list(model.state_dict())
    accelerated(model)
    assert all(isinstance(level, kind) for level in model.levels)
    assert [(n, id(p)) for n, p in model.named_parameters()] == [(n, id(p)) for n, p in parameters.items()]
    assert list(model.state_dict()) == keys
    for _ in range(2):  # the second call uses the statistics that the first one updated
        exact, got = results(plain, seg, clf), results(model, seg, clf)
        assert got.keys() == exact.keys()
        for key in exact:
            # absolute, too: with an open ReLU, a bias before a batch norm has no gradient
            torch.testing.assert_close(got[key], exact[key], rtol=1e-9, atol=1e-12)
            assert exact[key].any()
    plain.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    assert mtlkit.restore(model) == ["levels.0", "levels.1"]
    assert not any(isinstance(module, kind) for module in model.modules())
    for a, b, c in zip(model.eval()(seg, clf), plain.eval()(seg, clf), twin.eval()(seg, clf), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)


def test_a_second_call_has_no_effect():
    model = accelerated(Decoder(PlainLevel))
    report = mtlkit.accelerate(model)
    assert report.already == ("levels.0", "levels.1")
    assert not report.replaced
    assert not report.left
    own = nn.ModuleList([mtlkit.nn.InteractionLevel(8, 16), mtlkit.nn.TaskInteraction(8, 16)])
    assert mtlkit.accelerate(own).already == ("0", "1")


class OtherOrder(PlainTIM):
    """Applies the norm before the ReLU."""

    def forward(self, seg: Tensor, clf: Tensor) -> tuple[Tensor, Tensor]:
        context = torch.relu(self.s2c_bn(self.s2c_dense(torch.relu(self.s2c_conv(seg)).mean((2, 3)))))
        gate = torch.sigmoid(self.seg_gate(seg.mean((2, 3)))) * torch.sigmoid(self.c2s_dense(clf))
        return seg * (1 + self.tau * gate)[:, :, None, None], clf + torch.sigmoid(self.clf_gate(context)) * context


class OneOutput(PlainTIM):
    def forward(self, seg: Tensor, clf: Tensor) -> Tensor:
        return super().forward(seg, clf)[0]


def changed(**parts) -> nn.Module:
    layer = PlainTIM()
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (OtherOrder, "computes something else"),
        (OneOutput, "returns something else than 2 tensors"),
        (lambda: changed(s2c_conv=nn.Conv2d(DIM, DIM, 1)), "s2c_conv maps 6 to 6 channels, not to 3"),
        (lambda: changed(seg_gate=nn.Linear(DIM, DIM, bias=False)), "seg_gate has no bias"),
        (lambda: changed(clf_gate=nn.Linear(CLF_DIM, 4)), "clf_gate is a Linear of"),
        (lambda: changed(s2c_bn=nn.LayerNorm(CLF_DIM)), "s2c_bn is a LayerNorm of"),
        (lambda: changed(s2c_bn=nn.BatchNorm1d(CLF_DIM, momentum=None)), "a momentum"),
        (lambda: changed(extra=nn.Linear(2, 2)), "a part that a level has not: extra"),
        (lambda: changed(scale=nn.Parameter(torch.ones(1))), "parameters of its own: scale"),
        (lambda: changed(tau="high"), "tau is 'high'"),
    ],
)
def test_look_alikes_are_left_alone(make, reason):
    model = nn.ModuleList([make()])
    (left,) = mtlkit.accelerate(model).left
    assert reason in left.reason


def test_tim_is_replaced_where_its_level_is_not():
    model = nn.ModuleList([PlainLevel()])
    model[0].upa.register_buffer("average", torch.ones(2))
    report = mtlkit.accelerate(model)
    assert [entry.name for entry in report.left] == ["0"]
    assert [entry.name for entry in report.replaced] == ["0.tim"]
