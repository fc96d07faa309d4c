import importlib
import importlib.util
import json
import re

import pytest

import mtlkit

HEAVY = {
    "triton",
    "timm",
    "monai",
    "segmentation_models_pytorch",
    "huggingface_hub",
    "torchvision",
    "matplotlib",
    "scipy",
    "pandas",
    "rich",
    "mamba_ssm",
    "causal_conv1d",
    "safetensors",
}


# Prints to stderr, as JSON, the modules that `use` loads in addition to torch's, and its time as a share of torch's.
SCRIPT = """
import json, sys, time
start = time.perf_counter()
import torch
middle, modules = time.perf_counter(), set(sys.modules)
import mtlkit
{use}
end = time.perf_counter()
json.dump([sorted(set(sys.modules) - modules), (end - middle) / (middle - start)], sys.stderr)
"""


@pytest.mark.parametrize("use", ["mtlkit", "mtlkit.ops", "mtlkit.nn", "mtlkit.models"])
def test_import_is_silent_and_light(run_python, use):
    process = run_python("-c", SCRIPT.format(use=use))
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    added, share = json.loads(process.stderr)  # fails if anything else was printed
    print(f"{use}: {len(added)} modules, {share:.1%} of the time that torch takes")
    assert not {name.partition(".")[0] for name in added} & HEAVY


@pytest.mark.parametrize(
    "use",
    [
        "mtlkit",
        "mtlkit.deploy.open_session, mtlkit.inference.predict",
        "__import__('mtlkit.cli'); mtlkit.cli.parser().format_help(); mtlkit.cli.predict.run",
    ],
)
def test_what_needs_no_torch_loads_none(run_python, use):
    process = run_python("-c", f"import sys, mtlkit; {use}; print('torch' in sys.modules)")
    assert process.stdout == "False\n", process.stderr


def test_public_names():
    assert set(mtlkit.__all__) <= set(dir(mtlkit))
    assert mtlkit.use_backend is importlib.import_module("mtlkit.operators._backends").use_backend
    assert mtlkit.selective_scan_fn is importlib.import_module("mtlkit.operators.selective_scan").selective_scan


def test_unknown_name_is_named():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mtlkit.nonsense


def test_kernels_are_found():
    assert importlib.util.find_spec("mtlkit.kernels") is not None


def test_readme_example(root):
    (example,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
