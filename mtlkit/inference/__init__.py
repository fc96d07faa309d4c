"""Trained networks on images of one's own: masks, overlays, and a table of probabilities.

>>> from mtlkit.inference import predict
>>> found = predict("runs/mbdi", "scans", "found")  # doctest: +SKIP
>>> found.rows[0]["class_predicted"]  # doctest: +SKIP
'malignant'

Needs the extra `train`.
"""

from mtlkit.inference.drawing import draw_overlay
from mtlkit.inference.predicting import Predicted, predict

__all__ = ["Predicted", "draw_overlay", "predict"]
