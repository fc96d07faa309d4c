"""Estimates how long a recipe trains: number of steps from the size of the data set, and measured time per step."""

import time
from typing import Any

import torch

from mtlkit.training.config import Config
from mtlkit.training.modules import TrainingModule, create_network

__all__ = ["count_steps", "measure_step"]


def count_steps(config: Config, images: int) -> int:
    """Maximal number of steps in a recipe, for a data set with this many images or exams.

    Example:
        >>> from mtlkit.training import count_steps, load_config
        >>> count_steps(load_config("csa_moe"), 2129)
        1410
    """
    total = 0
    for number in (1, 2) if config.second_stage is not None else (1,):
        stage = config.stage(number)
        d, epochs = stage.data, stage.stopping.epochs
        batches = -(-int(images * d.fractions[0]) * (1 + d.copies) // d.batch_size)
        warmup = min(d.warmup_epochs, epochs)
        total += (epochs - warmup) * batches + warmup * min(batches, d.warmup_batches)
    return total


def measure_step(config: Config, device: torch.device | str, repeats: int = 3) -> float:
    """Seconds of one training step on random images (forward, backward and optimizer), the fastest of `repeats`.

    Example:
        >>> from mtlkit.training import load_config, measure_step
        >>> small = load_config("demo").change({"data": {"size": 32, "batch_size": 2}})
        >>> measure_step(small, "cpu", repeats=1) > 0
        True
    """
    changes = {"pretrained": False} if config.model.options.get("pretrained") else {}
    module = TrainingModule(create_network(config, device, **changes), config).to(device)
    batch, optimizer = _batch(module, device), module.configure_optimizers()
    seconds = []
    for _ in range(repeats + 1):  # the first run is warm-up
        _synchronise(device)
        start = time.perf_counter()
        values, _ = module.compute_losses(batch)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _synchronise(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _batch(module: TrainingModule, device: torch.device | str) -> dict[str, Any]:
    """Random images, all with the first class as label."""
    task, data = module.task, module.config.data
    shapes = task.shapes(data.size, data.batch_size)
    batch: dict[str, Any] = {task.inputs[name]: torch.rand(shape, device=device) for name, shape in shapes.items()}
    batch["mask"] = (torch.rand(data.batch_size, 1, data.size, data.size, device=device) > 0.5).float()
    batch["segmented"] = torch.ones(data.batch_size, dtype=torch.bool, device=device)
    sides = (2,) if "views" in batch else ()
    if sides:
        batch["present"] = torch.ones(data.batch_size, 4, dtype=torch.bool, device=device)
    for head in task.heads_of(module.model):
        batch[head.item] = torch.zeros(data.batch_size, *sides, dtype=torch.int64, device=device)
    return batch
