"""Phantoms: drawn images that look like the real thing closely enough to learn from, in the layouts of real data sets.

They are for trying, testing and teaching. Nothing measured on them says anything about patients.
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
