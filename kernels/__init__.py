"""Triton kernels, one file or folder an operator, imported as `mtlkit.kernels`.

Their arguments come one by one, strides as s<tensor>_<axis>: Triton 3.2, which torch 2.6 brings, takes no tuple as an
argument of a kernel or device function, and a constexpr there has no fields. Device functions read the sizes of tiles
from the shapes of their operands instead.

The folder keeps this file because an editable install finds `mtlkit.kernels` by it. Importing it loads no Triton.
"""
