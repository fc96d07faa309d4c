"""Every script in examples/ runs, is short, and gives the documented result."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from harness import processes
from mtlkit import compat, deploy

SCRIPTS = {  # with the arguments that make them small
    "accelerate_medmamba": ["32"],
    "export_without_torch": ["2"],
    "failures_by_gates": ["24", "32", "1"],
    "layer_in_your_unet": ["30"],
    "mamba_ssm_on_cpu": [],
    "volumes_with_mamba": ["30"],
}
DRAWN = sorted(set(SCRIPTS) - {"mamba_ssm_on_cpu"})
TIMED = {"accelerate_medmamba"}  # their pictures are committed only from a quiet machine


@pytest.fixture
def output(root, tmp_path, request):
    """The output of a script, which runs in a temporary folder."""
    script = root / "examples" / f"{request.param}.py"
    process = processes.run_python([script, *SCRIPTS[request.param]], tmp_path)
    assert process.returncode == 0, process.stderr
    if request.param in DRAWN:
        with Image.open(tmp_path / f"{request.param}.png") as picture:
            assert picture.getextrema() != ((255, 255),) * len(picture.getbands())
    return process.stdout


def test_no_script_is_missing(root):
    scripts = {path.stem for path in (root / "examples").glob("*.py") if not path.stem.startswith("plain_")}
    assert scripts == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_short(root, script):
    assert len((root / "examples" / f"{script}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("output", ["accelerate_medmamba"], indirect=True)
def test_accelerate_medmamba(output):
    assert "mtlkit.accelerate: 10 replaced, 0 left alone" in output
    assert float(re.search(r"logits differ by (\S+)", output).group(1)) < 1e-4
    for what in ("inference", "training step"):
        assert re.search(rf"{what}: [\d.]+ s before, [\d.]+ s after", output)


@pytest.mark.parametrize("output", ["layer_in_your_unet"], indirect=True)
def test_layer_in_your_unet(output):
    losses = losses_of(output)
    assert len(losses) == 31
    assert losses[-1] < 0.5 * losses[0]


def losses_of(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\S+)", output)]


@pytest.mark.parametrize("output", ["volumes_with_mamba"], indirect=True)
def test_volumes_with_mamba(output):
    losses = losses_of(output)
    assert len(losses) == 31
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("output", ["export_without_torch"], indirect=True)
def test_export_without_torch(output):
    assert float(re.search(r"logits differ by (\S+)", output).group(1)) < 1e-4


@pytest.mark.parametrize("output", ["failures_by_gates"], indirect=True)
def test_failures_by_gates(output):
    assert re.findall(r"^(.+): AUROC (?:nan|[01]\.\d\d)$", output, re.MULTILINE) == [
        "gates",
        "low spread",
        "1 - confidence",
    ]


def test_pictures_are_there_and_small(root):
    pictures = {path.stem: path.stat().st_size for path in (root / "examples").glob("*.png")}
    assert set(DRAWN) - TIMED <= set(pictures) <= set(DRAWN)
    assert max(pictures.values()) < 150_000
    gallery = (root / "docs" / "gallery.md").read_text()
    assert all(f"../examples/{name}.png" in gallery for name in pictures)
    assert all(f"../examples/{name}.py" in gallery for name in SCRIPTS)


@pytest.mark.parametrize("output", ["mamba_ssm_on_cpu"], indirect=True)
def test_mamba_ssm_on_cpu(output):
    assert "mamba_ssm is served by mtlkit" in output
    assert "block: (2, 1000, 64)" in output
    assert "step: (2, 1, 64)" in output
    assert "scan: (2, 128, 1000), last state (2, 128, 16)" in output


def test_scan_from_c(root, tmp_path):
    source, program, (library, include) = root / "examples" / "c" / "scan.c", tmp_path / "scan", paths_for_c()
    assert len(source.read_text().splitlines()) < 70
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler `cc` on PATH")
    link = ["-I", include, "-L", library, "-lmtlkit", f"-Wl,-rpath,{library}"]
    subprocess.run([compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", source, *link, "-o", program], check=True)
    for threads in ("1", "3"):
        process = subprocess.run([program, threads], capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        numbers, refusal = process.stdout.splitlines()
        assert f"{threads} threads: sum -23.6697, sum of squares 310.0006" in numbers
        assert refusal == "z: expected shape (B, H, W, C or more) = (1, 14, 10, 24), got (1, 14, 10, 23)"
    process = subprocess.run([program, "-1"], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "mtlkit: threads: expected a number that is at least 0, got -1\n"


def paths_for_c() -> tuple[Path, str]:
    """The folders of the library and its header."""
    try:
        return Path(deploy.library_path("c")).parent, deploy.include_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_page_runs(root, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "bring_your_model.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    try:
        for block in blocks:
            exec(compile(block, "bring_your_model.md", "exec"), {})
    finally:
        compat.uninstall()
    assert "mtlkit.accelerate: 10 replaced, 0 left alone" in capsys.readouterr().out
