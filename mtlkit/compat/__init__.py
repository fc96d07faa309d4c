"""mtlkit under the names of mamba-ssm, causal-conv1d and VMamba, for code that imports packages not installed here.

Nothing is registered at import: `install()` registers all names or the given ones, `uninstall()` undoes it. The
functions can also be called directly.

>>> import mtlkit
>>> names = mtlkit.compat.install(replace=True)
>>> from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
>>> import selective_scan_cuda_oflex
>>> mtlkit.compat.uninstall()
"""

from mtlkit.compat._cuda import cuda_on_cpu
from mtlkit.compat._inner import (
    bimamba_inner_fn,
    bimamba_inner_ref,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
    selective_scan_fn,
    selective_scan_ref,
)
from mtlkit.compat._install import (
    install,
    install_mamba_ssm,
    install_vmamba,
    uninstall,
    uninstall_mamba_ssm,
    uninstall_vmamba,
)
from mtlkit.compat.selective_scan_cuda import selective_scan_oflex

__all__ = [
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "cuda_on_cpu",
    "install",
    "install_mamba_ssm",
    "install_vmamba",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_oflex",
    "selective_scan_ref",
    "uninstall",
    "uninstall_mamba_ssm",
    "uninstall_vmamba",
]
