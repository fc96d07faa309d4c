"""Evaluates a run as in the papers: metrics with intervals, a row for each image, plots, and a report.

>>> from mtlkit.evaluation import evaluate
>>> metrics = evaluate("runs/mbdi", None, "runs/mbdi-test")  # doctest: +SKIP
>>> metrics["figures"]["dice"]  # doctest: +SKIP
{'value': 0.852, 'low': 0.831, 'high': 0.871}

Needs the extra `train`.
"""

from mtlkit.evaluation.analysis import judge
from mtlkit.evaluation.attribution import GradCam, grad_cam
from mtlkit.evaluation.bootstrap import (
    Figure,
    classification,
    intervals,
    ranking,
    reliability,
    risk_area,
    score_means,
    spearman,
)
from mtlkit.evaluation.comparison import compare
from mtlkit.evaluation.predictions import Predictions, pool, predict_records
from mtlkit.evaluation.publishing import publish
from mtlkit.evaluation.runner import PARTS, evaluate
from mtlkit.evaluation.seeds import evaluate_repeats

__all__ = [
    "PARTS",
    "Figure",
    "GradCam",
    "Predictions",
    "classification",
    "compare",
    "evaluate",
    "evaluate_repeats",
    "grad_cam",
    "intervals",
    "judge",
    "pool",
    "predict_records",
    "publish",
    "ranking",
    "reliability",
    "risk_area",
    "score_means",
    "spearman",
]
