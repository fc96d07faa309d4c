"""tools/gpu_bundle.py and tools/gpu_run.py: the packed files, rejected input, and the output of the packed script."""

import importlib.util
import json
import subprocess
import sys
import tarfile
import zipfile

import pytest


def load(root, name):
    spec = importlib.util.spec_from_file_location(name, root / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundle(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools")
    return load(root, "gpu_bundle")


@pytest.fixture
def peers(root):
    return load(root, "gpu_peers")


@pytest.fixture
def wheels(bundle, tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("pip", *bundle.NEEDED):
        (folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl").write_bytes(b"wheel")
    return folder


DESCRIPTION = {"commit": "abc", "python": "2.7", "torch": "2.11", "archs": "90", "packages": ["mtlkit"], "peers": []}


def test_contents(bundle, wheels, root, tmp_path):
    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "mamba_ssm-2.3-cp312-cp312-linux_x86_64.whl").write_bytes(b"peer")
    out = bundle.pack(tmp_path / "out" / "gpu.tar.gz", [wheels, peers], DESCRIPTION)
    with tarfile.open(out) as archive:
        assert all(name.startswith("mtlkit-gpu/") for name in archive.getnames())
        names = {name.removeprefix("mtlkit-gpu/") for name in archive.getnames()}
        assert json.load(archive.extractfile("mtlkit-gpu/bundle.json")) == DESCRIPTION
        assert archive.extractfile("mtlkit-gpu/run.py").read() == (root / "tools/gpu_run.py").read_bytes()
    expected = {
        "run.py",
        "bundle.json",
        "pyproject.toml",
        "tools/gpu.py",
        "tests/conftest.py",
        "tests/gpu/test_small.py",
    }
    expected |= {"benchmarks/test_bench_gpu.py", "benchmarks/conftest.py", "wheels/mtlkit-1.0-py3-none-any.whl"}
    assert expected | {"wheels/mamba_ssm-2.3-cp312-cp312-linux_x86_64.whl"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("mtlkit/", "benchmarks/results"))]
    assert [path.name for path in out.parent.iterdir()] == ["gpu.tar.gz"]


def test_a_missing_wheel_is_named(bundle, wheels, tmp_path):
    (wheels / "mtlkit-1.0-py3-none-any.whl").unlink()
    with pytest.raises(SystemExit, match=r"mtlkit: its wheel is missing in .*wheels"):
        bundle.pack(tmp_path / "gpu.tar.gz", [wheels], DESCRIPTION)
    assert not (tmp_path / "gpu.tar.gz").exists()


def test_too_large_an_archive_is_refused(bundle, wheels, tmp_path):
    """The earlier archive is kept, and the error names what is large."""
    out = tmp_path / "gpu.tar.gz"
    out.write_bytes(b"earlier")
    with pytest.raises(SystemExit, match=r"gpu.tar.gz: expected at most 0 MiB, got \d.*; largest: .*\.whl 0.0 MiB"):
        bundle.pack(out, [wheels], DESCRIPTION, limit=1000)
    assert out.read_bytes() == b"earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.tar.gz", "wheels"}


def test_peers_are_packed_as_sources(bundle, peers, wheels, tmp_path):
    """VMamba's with a setup.py that does not query a GPU."""
    checkout, sources = tmp_path / "VMamba", tmp_path / "sources"
    for name in ("kernels/selective_scan/csrc/selective_scan/reverse_scan.cuh", "classification/models/csm_triton.py"):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).write_text(name)
    for _ in range(2):
        peers.vmamba_sources(checkout, sources / "vmamba_scan")
    (sources / "mamba_ssm-2.3.tar.gz").write_bytes(b"sources")
    with tarfile.open(bundle.pack(tmp_path / "gpu.tar.gz", [wheels], DESCRIPTION, sources)) as archive:
        found = {name for name in archive.getnames() if name.startswith("mtlkit-gpu/peers/")}
    scan = "mtlkit-gpu/peers/vmamba_scan"
    expected = {
        f"{scan}/setup.py",
        f"{scan}/removed_from_cub.cuh",
        f"{scan}/csm_triton.py",
        f"{scan}/csrc/selective_scan/reverse_scan.cuh",
    }
    assert found == {"mtlkit-gpu/peers/mamba_ssm-2.3.tar.gz", *expected}
    compile((sources / "vmamba_scan/setup.py").read_text(), "setup.py", "exec")


def test_mamba_ssm_loses_the_imports_of_its_networks(peers, tmp_path):
    wheel = tmp_path / "mamba_ssm-2.3-cp312-cp312-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "mamba_ssm/__init__.py", '__version__ = "2.3"\n\nfrom mamba_ssm.models import MambaLMHeadModel\n'
        )
        archive.writestr("mamba_ssm/ops/scan.py", "import selective_scan_cuda\n")
    for _ in range(2):
        peers.without_language_model(wheel)
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read("mamba_ssm/__init__.py") == b'__version__ = "2.3"\n'
            assert archive.read("mamba_ssm/ops/scan.py") == b"import selective_scan_cuda\n"
    assert list(tmp_path.iterdir()) == [wheel]


def test_nvcc_compiles_for_the_bundles_architectures_alone(peers, tmp_path, monkeypatch):
    """Whatever a peer's setup.py says; all other arguments reach nvcc unchanged."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text('#!/bin/sh\necho "$@"\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    assert peers.find_nvcc() == str(nvcc)
    program = peers.nvcc_for(str(nvcc), "80;90", tmp_path)
    given = ["-O3", "-gencode", "arch=compute_75,code=sm_75", "-arch=sm_86", "-c", "a b.cu"]
    said = subprocess.run([program, *given], capture_output=True, text=True, check=True).stdout
    assert said == "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -O3 -c a b.cu\n"


def test_without_nvcc_no_peer_is_compiled(peers, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "find_nvcc", lambda: None)
    with pytest.raises(SystemExit, match="nvcc was not found"):
        peers.build([tmp_path], "90", tmp_path, 1)


def test_arguments(bundle, tmp_path, capsys):
    for given, error in (
        (["--vmamba", str(tmp_path)], "has no folder kernels/selective_scan/csrc"),
        (["--wheel", str(tmp_path / "mtlkit-1.whl")], "--wheel: expected a wheel of mtlkit, got "),
        (["--python", str(tmp_path / "python3.99")], "python3.99 does not run"),
    ):
        with pytest.raises(SystemExit):
            bundle.main(given)
        assert error in capsys.readouterr().err


def test_the_script_refuses_another_python(bundle, wheels, tmp_path):
    """The summary in $OUT states the reason."""
    with tarfile.open(bundle.pack(tmp_path / "gpu.tar.gz", [wheels], DESCRIPTION)) as archive:
        archive.extractall(tmp_path, members=[archive.getmember(f"mtlkit-gpu/{n}") for n in ("run.py", "bundle.json")])
    line = [sys.executable, tmp_path / "mtlkit-gpu" / "run.py"]
    found = subprocess.run(line, env={"OUT": str(tmp_path / "out")}, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stdout.startswith("this bundle is for Python 2.7, and ")
    assert "Nothing ran: this bundle is for Python 2.7" in (tmp_path / "out" / "summary.md").read_text()
