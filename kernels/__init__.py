"""Triton kernels, one file or folder an operator, imported as `mtlkit.kernels`.

The folder keeps this file because an editable install finds `mtlkit.kernels` by it. Importing it loads no Triton.
"""
