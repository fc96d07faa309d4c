"""Failure detection: which wrong answers of a BTI-Net do its gates, its vector's spread and its confidence detect?

`python failures_by_gates.py 24 32 1` takes 24 phantoms of 32 x 32 and trains for 1 epoch; by default 200 of 64 x 64 and
12 epochs. Needs the extra `train`, draws failures_by_gates.png. docs/oracle.md has the results of three seeds.
"""

import sys
import tempfile

import numpy as np
import torch
from plain_pictures import draw_curves

from mtlkit.data import synthesize_ultrasound
from mtlkit.evaluation import Predictions, evaluate
from mtlkit.metrics import failure_detection
from mtlkit.training import load_config, train


def predict(cases: int, size: int, epochs: int) -> Predictions:
    """Draws phantoms, trains the network and then its gates, and predicts the test part."""
    found: list[Predictions] = []
    recipe = load_config("demo").change({"data": {"size": size}, "stopping": {"epochs": epochs}})
    recipe = recipe.change({"second_stage": {"stopping": {"epochs": max(epochs // 3, 1)}}})
    with tempfile.TemporaryDirectory() as folder:
        synthesize_ultrasound(f"{folder}/data", cases=cases, size=2 * size)
        train(recipe, f"{folder}/data", f"{folder}/run", progress=False)
        evaluate(f"{folder}/run", None, f"{folder}/report", samples=0, judged=found.append)
    return found[0]


def main() -> None:
    """Draws how the share of wrong answers falls when the least certain images are referred to a reader."""
    cases, size, epochs = map(int, sys.argv[1:]) if len(sys.argv) > 1 else (200, 64, 12)
    test = predict(cases, size, epochs)
    wrong = test.wrong("class")
    gates, signals = np.asarray(test.gates), np.asarray(test.signals)  # (N, gates), (N, signals)
    gate = gates[:, [name.startswith("clf") for name in test.gate_names]].mean(1)
    spread = signals[:, [name.startswith("spread") for name in test.signal_names]].mean(1)
    scores = {"gates": gate, "low spread": -spread, "1 - confidence": 1 - test.confidence("class")}
    kept = np.arange(1, len(wrong) + 1)
    curves = {"at best": (kept / len(wrong), np.sort(wrong).cumsum() / kept)}
    for name, score in scores.items():
        auroc = float(failure_detection(torch.tensor(score), torch.tensor(wrong))["auroc"])
        print(f"{name}: AUROC {auroc:.2f}")
        curves[f"{name}: AUROC {auroc:.2f}"] = (kept / len(wrong), wrong[np.argsort(score)].cumsum() / kept)
    labels = ("share of the images that is answered, the most certain first", "share of wrong classes")
    title = f"{wrong.sum()} of {len(wrong)} phantoms get a wrong class"
    draw_curves("failures_by_gates.png", curves, labels, title)


if __name__ == "__main__":
    main()
