import doctest
import importlib
import importlib.util
import json
import re

import pytest

import mtlkit

HEAVY = {"triton", "timm", "torchvision", "matplotlib", "scipy", "pandas", "rich", "mamba_ssm", "causal_conv1d"}


def modules_and_seconds(run_python, statement: str) -> tuple[set[str], float]:
    """The modules that a fresh Python has loaded after `statement`, and how long that took."""
    script = (
        "import json, sys, time; start = time.perf_counter()\n"
        f"{statement}\n"
        "json.dump([sorted(sys.modules), time.perf_counter() - start], sys.stderr)"
    )
    process = run_python("-c", script)
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    modules, seconds = json.loads(process.stderr)  # fails where anything else was printed
    return set(modules), seconds


@pytest.fixture(scope="module")
def torch_alone(run_python) -> tuple[set[str], float]:
    return modules_and_seconds(run_python, "import torch")


@pytest.mark.parametrize("use", ["mtlkit", "mtlkit.ops", "mtlkit.nn", "mtlkit.models"])
def test_import_is_silent_and_light(run_python, torch_alone, use):
    torch_modules, torch_seconds = torch_alone
    modules, seconds = modules_and_seconds(run_python, f"import torch, mtlkit; {use}")
    added = modules - torch_modules
    print(f"{use}: {len(added)} modules and {seconds / torch_seconds - 1:+.1%} of torch's own time")
    assert not {name.partition(".")[0] for name in added} & HEAVY


def test_import_alone_needs_no_torch(run_python):
    modules, _ = modules_and_seconds(run_python, "import mtlkit")
    assert "torch" not in modules


def test_public_names():
    assert set(mtlkit.__all__) <= set(dir(mtlkit))
    assert mtlkit.use_backend is importlib.import_module("mtlkit.ops._backend").use_backend
    assert mtlkit.selective_scan_fn is importlib.import_module("mtlkit.ops.selective_scan").selective_scan


def test_unknown_name_is_named():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mtlkit.nonsense


def test_kernels_are_found():
    assert importlib.util.find_spec("mtlkit.kernels") is not None


def test_readme_example(root):
    (example,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})


def test_docstring_example():
    assert doctest.testmod(mtlkit).failed == 0
