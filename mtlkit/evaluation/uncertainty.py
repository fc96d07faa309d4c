"""Uncertainty of a network's predictions without gates: the entropy of one pass or of the mean of several.

    entropy      of a class    -sum_k p_k log p_k
                 of a mask sum of the pixels' -p log p - (1-p) log(1-p), divided by the lesion's expected size, sum p
    dropout      the entropy of the mean over passes with active dropout (Monte Carlo dropout)
    flips        the entropy of the mean over the image and its mirror images (test-time augmentation)

Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation" (arXiv 1506.02142); Wang et al., "Aleatoric
uncertainty estimation with test-time augmentation for medical image segmentation with convolutional neural networks"
(arXiv 1807.07356).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlkit.data import Exam, Record
from mtlkit.training import SavedRun

__all__ = ["DROPOUT", "ENTROPY", "FLIPS", "entropies", "run_rivals"]

ENTROPY, DROPOUT, FLIPS = "entropy", "Monte Carlo dropout", "flips"
ONE_PASS = "one pass"
MIRRORS = ((), (-1,), (-2,), (-1, -2))  # flipped dimensions


def entropies(found: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """The entropy of "mask", (B,), and of each task, (B,) or (B, 2), if the network predicts them."""
    values = {task: -torch.special.xlogy(found[task], found[task]).sum(-1) for task in tasks}
    if "mask" in found:
        p = found["mask"].flatten(1)  # (B, H W)
        bits = -torch.special.xlogy(p, p) - torch.special.xlogy(1 - p, 1 - p)
        values["mask"] = bits.sum(1) / p.sum(1).clamp(min=torch.finfo(p.dtype).tiny)
    return values


def droppers(model: nn.Module) -> list[nn.Module]:
    """The dropout layers of a network."""
    return [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]


@contextmanager
def _dropping(model: nn.Module, seed: int) -> Iterator[None]:
    """Activates dropout in a network in eval mode inside the block, with its own random numbers."""
    device = next(model.parameters()).device
    layers = droppers(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()


def _mean(found: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in found]).mean(0) for name in names}


def _by_dropout(run: SavedRun, batch: Mapping[str, Any], names: Sequence[str], passes: int, seed: int) -> Any:
    with _dropping(run.model, seed):
        return _mean([run.predict(batch) for _ in range(passes)], names)


def _by_flips(run: SavedRun, batch: Mapping[str, Any], names: Sequence[str]) -> Any:
    found = []
    for dims in MIRRORS:
        turned = {k: v.flip(dims) if isinstance(v, Tensor) and v.dim() > 3 else v for k, v in batch.items()}
        answer = run.predict(turned)
        found.append(answer | ({"mask": answer["mask"].flip(dims)} if "mask" in answer else {}))
    return _mean(found, names)


def run_rivals(
    run: SavedRun,
    records: Sequence[Record] | Sequence[Exam],
    passes: int,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, dict[str, NDArray[np.float64]]], dict[str, float]]:
    """The entropies by dropout and by flips.

    Args:
        run: a run from `mtlkit.training.load_run`.
        records: records of a catalogue.
        passes: number of passes with dropout. A network without dropout has no such entropy.
        batch_size: batch size; by default that of the run's own evaluation.
        seed: seed of the dropout.
        progress: called with the number of processed records and the total.

    Returns:
        The entropies by method and by "mask" or task, (N,) or (N, 2) for both breasts; and the seconds per image of
        each method, including a single pass.
    """
    methods: dict[str, Callable[[Any, Any, int], Any]] = {ONE_PASS: lambda batch, names, _: run.predict(batch)}
    if droppers(run.model):
        methods[DROPOUT] = lambda batch, names, number: _by_dropout(run, batch, names, passes, seed + number)
    methods[FLIPS] = lambda batch, names, _: _by_flips(run, batch, names)
    names = [*run.tasks, *(["mask"] if run.task.draws_masks else [])]
    parts: dict[str, dict[str, list[Tensor]]] = {name: {} for name in methods if name != ONE_PASS}
    seconds, done = dict.fromkeys(methods, 0.0), 0
    for number, batch in enumerate(run.loader(records, batch_size)):
        if number == 0:
            run.predict(batch)  # warm-up
        for name, method in methods.items():
            start = time.perf_counter()
            found = method(batch, names, number)
            seconds[name] += time.perf_counter() - start
            if name != ONE_PASS:
                for what, value in entropies(found, list(run.tasks)).items():
                    parts[name].setdefault(what, []).append(value)
        done += len(batch["key"])
        if progress is not None:
            progress(done, len(records))
    whole = {
        name: {what: torch.cat(values).double().numpy() for what, values in of.items()} for name, of in parts.items()
    }
    return whole, {name: value / len(records) for name, value in seconds.items()}
