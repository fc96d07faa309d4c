"""One line for a model that you have: MedMamba in plain PyTorch, before and after `mtlkit.accelerate`.

`python accelerate_medmamba.py 224` takes images of 224 x 224; import your own model in place of plain_medmamba.py.
"""

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from plain_medmamba import MedMamba
from plain_pictures import draw_times

import mtlkit


def seconds(call: Callable[[], object]) -> float:
    """The shortest of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Times the plain and the accelerated model."""
    torch.manual_seed(0)
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    model = MedMamba(num_classes=2).eval()
    optimizer = torch.optim.AdamW(model.parameters())  # computed before the swap, and still correct after it
    images, labels = torch.rand(1, 3, size, size), torch.tensor([1])

    @torch.no_grad()
    def infer() -> torch.Tensor:
        return model(images)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    logits, before = infer(), {"inference": seconds(infer)}

    report = mtlkit.accelerate(model)

    print(report)
    print(f"logits differ by {(infer() - logits).abs().max():.0e}")
    after = {"inference": seconds(infer), "training step": seconds(train)}
    mtlkit.restore(model)  # undoes the swap
    before["training step"] = seconds(train)
    print(*(f"{what}: {before[what]:.3f} s before, {after[what]:.3f} s after" for what in before), sep="\n")
    draw_times("accelerate_medmamba.png", before, after, f"MedMamba at {size} x {size}, accelerated")


if __name__ == "__main__":
    main()
