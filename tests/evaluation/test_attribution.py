"""Grad-CAM compared with manual computations; it leaves the network unchanged."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.data import LesionDataset, open_dataset
from mtlkit.evaluation import grad_cam
from mtlkit.models import create_model
from mtlkit.models.network import ClassMap

SMALL = {"encoder": "resnet18", "decoder_dims": (16, 16, 12, 8), "clf_dim": 16, "hmsf": False}


class Toy(nn.Module):
    """A linear layer on the mean (or, by `square`, the mean square) of a map of half the size."""

    def __init__(self, channels: int = 2, classes: int = 3, *, square: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps, self.after = nn.AvgPool2d(2), nn.ReLU(inplace=True)
        self.head, self.square = nn.Linear(channels, classes), square

    @property
    def class_maps(self) -> tuple[ClassMap, ...]:
        return (ClassMap(self.maps, ("image",)),)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        x = self.after(self.maps(images if masks is None else images * masks))
        return self.head((x**2 if self.square else x).mean((2, 3)))


class Output(NamedTuple):
    label_logits: Tensor | None
    birads_logits: Tensor
    gates: Tensor


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 2, 8, 12, generator=torch.Generator().manual_seed(1))


# --- compared with manual computation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("square", [False, True])
def test_is_the_formula(images, square):
    """y = sum_k w_k mean(A_k), or of A_k squared: alpha_k = w_k / hw, or 2 w_k mean(A_k) / hw."""
    network, target = Toy(square=square), torch.tensor([2, 0])
    found = grad_cam(network, images, target=target)
    a = F.avg_pool2d(images, 2)  # (2, 2, 4, 6)
    alpha = network.head.weight.detach()[target] / (4 * 6)  # (2, 2)
    alpha = 2 * alpha * a.mean((2, 3)) if square else alpha
    expected = F.interpolate((alpha[..., None, None] * a).sum(1, keepdim=True).relu(), (8, 12), mode="bilinear")[:, 0]
    torch.testing.assert_close(found.maps["image"], expected)
    assert expected.max() > 0
    assert found.classes.tolist() == [2, 0]
    torch.testing.assert_close(found.logits, network(images).detach().gather(1, target[:, None])[:, 0])


def test_takes_the_likeliest_class(images):
    network = Toy()
    expected = network(images).argmax(1)
    assert grad_cam(network, images).classes.tolist() == expected.tolist()
    one = grad_cam(network, images, target=1).maps["image"]
    torch.testing.assert_close(one, grad_cam(network, images, target=torch.tensor([1, 1])).maps["image"])


def test_rises_where_the_phantoms_lesion_is(draw_phantoms):
    """For a network that classifies by the lesion only; a pixel of the map is two of the image."""
    records = [r for r in open_dataset(draw_phantoms("ultrasound", 40)).records if r.masks and not r.without_lesion]
    item = LesionDataset(records[:1], 64, normalize=False)[0]
    image, mask = item["image"][None], item["mask"][None]
    network = Toy(3)
    nn.init.ones_(network.head.weight)
    heat = grad_cam(network, image, mask, target=0).maps["image"]
    inside, near = mask[:, 0] > 0, F.max_pool2d(mask, 7, 1, 3)[:, 0] > 0
    assert heat[inside].min() > 0
    assert heat[~near].max() == 0
    assert heat[inside].mean() > 5 * heat[~inside].mean()


def test_maps_of_views_are_those_of_each_by_itself():
    """Views are along the batch, channels last: a shift of one view's map does not change the others."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.last = nn.Conv2d(1, 3, 1), nn.Identity()
            self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(2))

        def forward(self, views: Tensor) -> Output:
            x = self.last(self.net(views.flatten(0, 1)).permute(0, 2, 3, 1))  # (B 2, H, W, 3)
            means = x.mean((1, 2)).unflatten(0, (-1, 2)).flatten(1)
            return Output(None, torch.stack([head(means) for head in self.heads], 1), means)

    torch.manual_seed(0)
    network, views = Views(), torch.rand(3, 2, 1, 4, 5)
    names = ClassMap(network.last, ("l", "r"), channels_last=True)
    found = grad_cam(network, views, side=1, target=0, maps=[names]).maps
    for i, name in enumerate(("l", "r")):
        a = network.net(views[:, i]).detach()
        alpha = network.heads[1].weight[0].detach()[3 * i : 3 * i + 3] / 20
        torch.testing.assert_close(found[name], (alpha[:, None, None] * a).sum(1).relu())


def test_what_was_filled_up_is_cropped():
    class Padded(Toy):
        class_maps = property(lambda self: (ClassMap(self.maps, ("image",), multiple=8),))

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(F.pad(images, (0, 4, 0, 3)))

    image = torch.rand(1, 2, 13, 12)
    found = grad_cam(Padded(), image, target=0).maps["image"]
    assert found.shape == (1, 13, 12)
    whole = grad_cam(Toy(), F.pad(image, (0, 4, 0, 3)), target=0).maps["image"]
    torch.testing.assert_close(found, whole[:, :13, :12])


# --- networks ---------------------------------------------------------------------------------------------------------

VIEWS = {"l_cc", "l_mlo", "r_cc", "r_mlo"}
HYBRID = {"dims": (128,), "depths": (1,), "d_state": 1}
NETWORKS = [
    ("mbdi", SMALL, "image"),
    ("btinet", SMALL, "image"),
    ("csa_moe", {}, "image tumor boundary"),
    ("csa_moe", {"experts": ("image",), "csa": False}, "image"),
    ("hybrid_vssm", HYBRID, "l_cc l_mlo r_cc r_mlo"),
    ("hybrid_vssm", HYBRID | {"shared": False}, "l_cc r_cc l_mlo r_mlo"),
    ("mammo_resnet18", {"tasks": ("birads",)}, "l_cc l_mlo r_cc r_mlo"),
]


@pytest.mark.parametrize(("name", "options", "names"), NETWORKS)
def test_networks_tell_their_maps_and_stay_as_they_were(name, options, names):
    torch.manual_seed(0)
    network = create_model(name, **options)
    network.train()
    next(network.children()).eval()
    next(network.parameters()).requires_grad_(False)
    exam = "cc" in names
    inputs = [torch.rand(2, 4, 3, 64, 64) if exam else torch.rand(2, 3, 64, 64)]
    if name == "csa_moe":
        inputs.append(torch.zeros(2, 1, 64, 64))
        inputs[1][:, :, 10:50, 14:50] = 1
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    learning = [parameter.requires_grad for parameter in network.parameters()]
    with torch.no_grad():
        found = grad_cam(network, *inputs, side=1 if exam else None)
    assert list(found.maps) == names.split()
    assert all(one.shape == (2, 64, 64) and one.min() >= 0 for one in found.maps.values())
    assert max(one.max() for one in found.maps.values()) > 0
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == learning
    assert all((parameter.grad == 1).all() for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    frozen = grad_cam(network.requires_grad_(False), *inputs, side=1 if exam else None)
    for key, one in found.maps.items():
        torch.testing.assert_close(frozen.maps[key], one, rtol=1e-4, atol=1e-7)


def test_a_map_is_of_its_own_image_where_rows_look_at_each_other():
    """The published MBDI divides by the mean over the batch; the map belongs to the row's own logit."""
    torch.manual_seed(0)
    network, images = create_model("mbdi", **SMALL).eval(), torch.rand(2, 3, 64, 64)
    assert network.depends_on_batch
    found = grad_cam(network, images, target=0).maps["image"]
    kept = []
    handle = network.refine[-1].register_forward_hook(lambda module, given, made: kept.append(made) or made)
    logits = network(images).cls_logits
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[1, 0], kept[0])
    raw = (gradient[1].mean((1, 2), keepdim=True) * kept[0][1]).sum(0).relu().detach()
    expected = F.interpolate(raw[None, None], (64, 64), mode="bilinear")[0, 0]
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-7)


def test_inference_mode_makes_no_difference(images):
    network = Toy()
    expected = grad_cam(network, images).maps["image"]
    with torch.inference_mode():
        found = grad_cam(network, images.clone()).maps["image"]
    torch.testing.assert_close(found, expected)


# --- rejected input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 3}, r"^target: expected classes from 0 to 2, got 3$"),
        ({"target": -1}, r"^target: expected classes from 0 to 2, got -1$"),
        ({"target": torch.tensor([0, 1, 2])}, r"^target: expected a class, or one for each of 2 rows, got "),
        ({"target": 0.5}, r"^target: expected a class, or one for each of 2 rows, got 0.5$"),
        ({"side": 0}, r"^side: expected None, as there is one prediction per image, got 0$"),
        ({"output": "cls_logits"}, r"^output: expected None for a network that returns one tensor, got 'cls_logits'$"),
        ({"maps": ()}, r"^maps: expected at least one ClassMap, as Toy does not declare class_maps$"),
        (
            {"maps": [ClassMap(nn.ReLU(), ("a",))]},
            r"^maps: expected modules that the network runs, got the unused one of a$",
        ),
    ],
)
def test_clear_errors(images, options, words):
    network = Toy()
    with pytest.raises(ValueError, match=words):
        grad_cam(network, images, **options)
    assert network.training
    assert not network.maps._forward_hooks


def test_clear_errors_of_maps_and_outputs(images):
    network = Toy()
    with pytest.raises(
        ValueError, match=r"^maps: expected a module that returns a map \(B, C, h, w\), got shape \(2, 3\)"
    ):
        grad_cam(network, images, maps=[ClassMap(network.head, ("a",))])
    network.forward = lambda images: (network.maps(images), network.head(images.mean((2, 3))))[1]
    with pytest.raises(ValueError, match=r"^maps: expected maps that the class depends on, which is not so for image$"):
        grad_cam(network, images)
    network.forward = lambda images: network.head(network.maps(network.maps(images)).mean((2, 3)))
    with pytest.raises(
        ValueError, match=r"^maps: expected modules that run once per batch, got one that runs several times$"
    ):
        grad_cam(network, images)
    exams = create_model("mammo_resnet18")
    with pytest.raises(ValueError, match=r"^side: expected 0 for the left or 1 for the right breast, got None$"):
        grad_cam(exams, torch.rand(1, 4, 3, 32, 32))
    with pytest.raises(ValueError, match=r"^output: expected label_logits, birads_logits, got 'cls_logits'$"):
        grad_cam(exams, torch.rand(1, 4, 3, 32, 32), output="cls_logits")
    with pytest.raises(FloatingPointError, match="is NaN or infinite"):
        grad_cam(Toy(), images * float("nan"))
    with torch.inference_mode():
        network = Toy()
    with pytest.raises(ValueError, match=r"^network: expected parameters created outside torch.inference_mode\(\)"):
        grad_cam(network, images)
