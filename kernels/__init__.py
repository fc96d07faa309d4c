"""Triton kernels, one file or folder per operator, imported as `mtlkit.kernels`.

Their arguments are passed one by one, strides as s<tensor>_<axis>: Triton 3.2, which torch 2.6 installs, does not
accept tuples as arguments of a kernel or device function, and a constexpr there has no fields. Device functions read
the sizes of tiles from the shapes of their operands instead.

An editable install finds `mtlkit.kernels` by this file. Importing it does not load Triton.
"""
