"""Every network learns eight synthetic cases, and learns the same on every backend."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mtlkit
from mtlkit.models import create_model

SIZE = 64
PAIR = {"encoder": "resnet18", "decoder_dims": (32, 24, 16, 12), "clf_dim": 32, "dropout": 0.0, "num_classes": 2}
UNET = {"encoder": "resnet18", "dim": 8, "dropout": 0.0, "num_classes": 2}
SCAN = {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128), "drop_path_rate": 0.0, "num_classes": 2}
FOUR_VIEWS = {"dropout": 0.0, "drop_path_rate": 0.0, "birads_classes": 3}
CASES = {
    "mbdi": PAIR,
    "btinet": PAIR,
    "unet": UNET,
    "attention_unet": UNET,
    "csa_moe": {"dropout": 0.0},
    "hybrid_vssm": FOUR_VIEWS,
    "mammo_vssm": FOUR_VIEWS | {"dims": (16, 32, 64, 128)},
    "medmamba_t": SCAN,
    "vmamba_t_s1l8": SCAN,
}
STEPS = {"mbdi": 45, "btinet": 45, "unet": 60, "attention_unet": 60}


def lesions(count: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Speckled images with an ellipse, smooth and dark or rough and spiked: images, masks, classes."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    images, masks = [], []
    labels = torch.arange(count) % 2
    for label in labels.tolist():
        cy, cx, ry, rx = (
            torch.rand(4, generator=generator) * torch.tensor([24, 24, 6, 8]) + torch.tensor([20, 20, 8, 9])
        ).tolist()
        angle = torch.atan2(y - cy, x - cx)
        radius = 1 + 0.25 * label * torch.sin(7 * angle)
        mask = (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < radius**2).float()
        noise = torch.rand(SIZE, SIZE, generator=generator)
        images.append(0.6 + 0.3 * noise - mask * (0.45 - 0.2 * label * noise))
        masks.append(mask)
    images = torch.stack(images)[:, None].expand(-1, 3, -1, -1)
    return (images - images.mean()) / images.std(), torch.stack(masks)[:, None], labels


def exams(count: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Four views; the left or right breast has a lesion or not: views, labels (B, 2), BI-RADS (B, 2)."""
    images, _, kinds = lesions(4 * count)
    views = images.unflatten(0, (count, 4))
    kinds = kinds.unflatten(0, (count, 4))
    order = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(count)])
    views = torch.stack([view[index] for view, index in zip(views, order, strict=True)])
    kinds = torch.stack([kind[index] for kind, index in zip(kinds, order, strict=True)])
    rough = kinds.unflatten(1, (2, 2)).sum(2)  # (B, 2): of each side, 0 to 2 rough lesions
    return views, (rough > 0).long(), rough


class Problem:
    """A network and the cases that it must learn."""

    def __init__(self, name: str, thin: int = 1) -> None:
        """Keeps every `thin`-th pixel of the cases."""
        torch.manual_seed(0)
        self.model = create_model(name, **CASES[name]).train()
        if "mammo" in name or "hybrid" in name:
            views, labels, birads = exams()
            self.given, self.targets = (views,), {"label_logits": labels, "birads_logits": birads}
        else:
            images, masks, labels = lesions()
            self.given = (images, masks) if name == "csa_moe" else (images,)
            self.targets = {"cls_logits": labels, "seg_logits": masks[..., ::thin, ::thin]}
        self.given = tuple(tensor[..., ::thin, ::thin] for tensor in self.given)

    def outputs(self) -> dict[str, Tensor]:
        output = self.model(*self.given)
        return {"cls_logits": output} if isinstance(output, Tensor) else output._asdict()

    def loss(self) -> Tensor:
        total = torch.zeros(())
        for name, logits in self.outputs().items():
            target = self.targets.get(name)
            if name == "seg_logits":
                p = logits.sigmoid()
                overlap = (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
                total = total + F.binary_cross_entropy_with_logits(logits, target) + 1 - overlap
            elif target is not None:
                total = total + F.cross_entropy(logits.flatten(0, -2), target.flatten())
        return total

    def train(self, steps: int, rate: float) -> list[float]:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=rate)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def scores(self) -> dict[str, float]:
        """Dice and accuracies in eval mode, with new statistics: Keras' momentum would need hundreds of steps."""
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = 1.0
        self.outputs()
        self.model.eval()
        found = {}
        for name, logits in self.outputs().items():
            target = self.targets.get(name)
            if name == "seg_logits":
                mask = (logits > 0).float()
                found["dice"] = (2 * (mask * target).sum((1, 2, 3)) / (mask + target).sum((1, 2, 3))).mean().item()
            elif target is not None:
                found[name] = (logits.argmax(-1) == target).float().mean().item()
        return found


@pytest.mark.parametrize("name", CASES)
def test_eight_cases_are_learnt(name):
    problem = Problem(name)
    problem.train(STEPS.get(name, 15), 4e-3)
    scores = problem.scores()
    print(name, scores)
    assert scores.pop("dice", 1.0) > 0.95
    assert scores
    assert set(scores.values()) == {1.0}


@pytest.mark.parametrize("name", ["mbdi", "btinet", "hybrid_vssm", "medmamba_t"])
def test_backends_follow_the_same_curve(name):
    curves = []
    for backend in ("auto", "reference"):
        with mtlkit.use_backend(backend):
            curves.append(torch.tensor(Problem(name, thin=2).train(20, 3e-4)))
    torch.testing.assert_close(curves[0], curves[1], rtol=0.01, atol=0)
    assert curves[0][-1] < 0.9 * curves[0][0]
