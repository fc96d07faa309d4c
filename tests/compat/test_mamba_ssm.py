"""The imports of published projects, and the values of their availability flags."""

import sys

import pytest
import torch

from harness.mamba import inputs
from mtlkit import compat
from mtlkit.testing import assert_accurate

# each import block restated from a project; flags are those that it computes
IMPORTS = {
    "MedMamba, VM-UNet, H-vmunet": """
flags = []
try:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref
    flags.append("mamba")
except ImportError:
    pass
try:
    from selective_scan import selective_scan_fn as selective_scan_fn_v1, selective_scan_ref as selective_scan_ref_v1
    flags.append("v1")
except ImportError:
    pass
assert flags == ["mamba", "v1"]
""",
    "U-Mamba, LightM-UNet, UltraLight-VM-UNet, SegMamba": "from mamba_ssm import Mamba",
    "Vim": """
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.utils.generation import GenerationMixin
from mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf
from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
class LanguageModel(GenerationMixin): pass
""",
    "VideoMamba, LocalVim": """
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn_no_out_proj
from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn
""",
    "VMamba": """
oflex = core = mamba = True
try:
    import selective_scan_cuda_oflex
except ImportError:
    oflex = False
try:
    import selective_scan_cuda_core
except ImportError:
    core = False
try:
    import selective_scan_cuda
except ImportError:
    mamba = False
assert oflex and core and mamba  # each name that the code falls back to is there
assert all(callable(m.fwd) for m in (selective_scan_cuda_oflex, selective_scan_cuda_core, selective_scan_cuda))
""",
    "Mamba-YOLO": """
import selective_scan_cuda_core, selective_scan_cuda_oflex, selective_scan_cuda_ndstate, selective_scan_cuda_nrow
import selective_scan_cuda
""",
    "EfficientVMamba": """
from selective_scan_vmamba_pt202 import selective_scan_cuda_core
from selective_scan_vmamba import selective_scan_cuda_core as other
assert other.fwd is selective_scan_cuda_core.fwd
""",
    "Sigma": """
import selective_scan_cuda_core as selective_scan_cuda
from selective_scan import selective_scan_fn as selective_scan_fn_v1
""",
    "PlainMamba": """
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from mamba_ssm.ops.triton.layernorm import RMSNorm
""",
    "bundled copies of mamba-ssm": """
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
import causal_conv1d_cuda, selective_scan_cuda
from mamba_ssm.ops.selective_scan_interface import (
    bimamba_inner_fn, bimamba_inner_ref, mamba_inner_fn, mamba_inner_fn_no_out_proj, mamba_inner_ref, selective_scan_fn,
)
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
from mamba_ssm.modules.mamba_simple import Block, Mamba
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
""",
    "mamba-ssm 2": """
from causal_conv1d.cpp_functions import (
    causal_conv1d_bwd_function, causal_conv1d_fwd_function, causal_conv1d_update_function,
)
from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
from mamba_ssm.utils.generation import InferenceParams
import mamba_ssm
assert mamba_ssm.__version__.startswith("1.")
""",
}


@pytest.fixture(autouse=True)
def _installed():
    compat.install()
    yield
    compat.uninstall()


@pytest.mark.parametrize("project", IMPORTS)
def test_imports(project):
    exec(compile(IMPORTS[project], project, "exec"), {"__name__": "a_project"})


def test_layers_are_pickled_without_the_served_names():
    from mamba_ssm import Mamba

    assert Mamba.__module__.startswith("mtlkit.")
    assert getattr(sys.modules[Mamba.__module__], Mamba.__qualname__) is Mamba


def test_a_step_of_decoding():
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update, selective_state_update_ref

    arguments = inputs(2, 1, 4, 6, 3, ("variable", "variable"), ("D", "z", "delta_bias"), torch.float64)
    u, delta, A, B, C, D, z, bias = arguments.values()
    exact, last = selective_scan_ref(**arguments, delta_softplus=True, return_last_state=True)
    for update in (selective_state_update, selective_state_update_ref):
        state = torch.zeros_like(last)
        tokens = ((u[..., t], delta[..., t], A, B[..., t], C[..., t], D, z[..., t], bias, True) for t in range(6))
        y = torch.stack([update(state, *token) for token in tokens], -1)
        assert_accurate("out", y, exact)
        assert_accurate("state", state, last)
