"""Runs trained networks on your own images: masks, overlays, and a table of probabilities.

>>> from mtlkit.inference import predict
>>> found = predict("runs/mbdi", "scans", "found")  # doctest: +SKIP
>>> found.rows[0]["class_predicted"]  # doctest: +SKIP
'malignant'

Runs need the extra `train`; ONNX files only need `predict`.
"""

from mtlkit.inference.drawing import draw_overlay
from mtlkit.inference.networks import Facts, OpenNetwork, open_network
from mtlkit.inference.passes import EXAM_FLIPS, IMAGE_FLIPS, flip_average, slide
from mtlkit.inference.predicting import Predicted, predict

__all__ = [
    "EXAM_FLIPS",
    "IMAGE_FLIPS",
    "Facts",
    "OpenNetwork",
    "Predicted",
    "draw_overlay",
    "flip_average",
    "open_network",
    "predict",
    "slide",
]
