"""Phantoms: synthetic images, realistic enough for a network to learn from, in the layouts of real data sets.

They are for trials, tests and teaching. Results on them say nothing about patients.
"""

from mtlkit.data.synthetic.layouts import synthesize_layout
from mtlkit.data.synthetic.mammography import Breast, draw_mammogram, synthesize_mammography
from mtlkit.data.synthetic.ultrasound import draw_ultrasound, synthesize_ultrasound

__all__ = [
    "Breast",
    "draw_mammogram",
    "draw_ultrasound",
    "synthesize_layout",
    "synthesize_mammography",
    "synthesize_ultrasound",
]
