"""Networks in ONNX files: the same predictions as the runs from which they were exported."""

import csv
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

import mtlkit
from mtlkit import deploy
from mtlkit.cli import main
from mtlkit.data import DataError
from mtlkit.deploy import _library
from mtlkit.inference import open_network, predict


def drawings(folder: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same(one: Path, other: Path) -> None:
    """Compares two prediction folders of networks that differ only by rounding."""
    for row, expected in zip(table(one), table(other), strict=True):
        assert row.keys() == expected.keys()
        for name, value in row.items():
            if "_p_" in name or name.startswith("gate_"):
                assert value == expected[name] or float(value) == pytest.approx(float(expected[name]), abs=2e-6)
            elif name.startswith("area_pixels") and value:
                assert int(value) == pytest.approx(int(expected[name]), abs=2)
            elif not name.startswith("area_mm2"):
                assert value == expected[name]
    names = drawings(other)
    assert drawings(one).keys() == names.keys()
    for name, pixels in drawings(one).items():
        if name.startswith("masks/"):
            assert (pixels != names[name]).sum() <= 2, name  # pixels at the threshold


def test_what_both_engines_say(small_lesion, small_views, small_mammography):
    for run, file in (small_lesion, small_views, small_mammography):
        by_torch, by_onnx = open_network(run), open_network(file)
        assert by_torch.facts == by_onnx.facts
        assert (by_torch.engine, by_onnx.engine) == ("torch", "onnxruntime")
        inputs = dict(zip(run.task.inputs, (tensor.numpy() for tensor in run.example()), strict=True))
        expected, found = by_torch(inputs), by_onnx(inputs)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_a_file_of_an_earlier_version_is_not_calibrated(small_lesion, tmp_path):
    model, path = onnx.load(small_lesion.file), tmp_path / "old.onnx"
    (entry,) = (one for one in model.metadata_props if one.key == "mtlkit")
    facts = json.loads(entry.value)
    del facts["temperatures"]
    entry.value = json.dumps(facts)
    onnx.save(model, path)
    assert open_network(path).facts == open_network(small_lesion.file).facts


def test_images(small_lesion, image, tmp_path):
    """PNG, JPEG, DICOM frames, and a DICOM file with pixel spacing."""
    image("scans/a.png", 40, 52)
    image("scans/more/b.jpg", 133, 121, seed=1)
    dicom = pydicom.dcmread(get_testdata_file("examples_rgb_color.dcm", download=False))
    dicom.PixelSpacing = [0.5, 0.25]
    dicom.save_as(tmp_path / "scans/c.dcm")
    (tmp_path / "scans/d.png").write_bytes(b"broken")
    folders = [tmp_path / "torch", tmp_path / "onnx"]
    for network, out in zip(small_lesion, folders, strict=True):
        found = predict(network, tmp_path / "scans", out, skip_bad=True)
        assert [row["key"] for row in found.rows] == ["a", "c", "more/b"]
        assert len(found.skipped) == 1
    assert_same(*folders)
    assert float(table(folders[1])[1]["area_mm2"]) > 0
    about = json.loads((folders[1] / "predictions.json").read_text())
    assert (about["run"], about["engine"], about["device"]) == (str(small_lesion.file), "onnxruntime", "cpu")
    assert about["weights"] == deploy.facts_of(deploy.open_session(small_lesion.file))["weights"]


def test_masks(small_views, image, tmp_path):
    for name in "ab":
        image(f"scans/{name}.png", 40, 52)
        mask = np.zeros((40, 52), np.uint8)
        mask[5:20, 10:30] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{name}.png")
    folders = [tmp_path / "torch", tmp_path / "onnx"]
    for network, out in zip(small_views, folders, strict=True):
        predict(network, tmp_path / "scans", out, masks=tmp_path / "masks")
    assert_same(*folders)


def test_exams(small_mammography, draw_phantoms, tmp_path):
    exams = draw_phantoms("mammography", 5)
    folders = [tmp_path / "torch", tmp_path / "onnx"]
    remarks = [
        predict(network, exams / "CMMD", out).remarks for network, out in zip(small_mammography, folders, strict=True)
    ]
    assert remarks[0] == remarks[1]
    assert_same(*folders)


# --- without PyTorch --------------------------------------------------------------------------------------------------

PACKAGES = ("numpy", "pillow", "pydicom", "onnxruntime")
SCRIPT = """
import sys
sys.path.append(sys.argv[1])
from mtlkit.cli import main
import mtlkit
mtlkit.deploy.open_session
for line in sys.stdin.read().splitlines():
    assert main(["predict", *line.split("\t")]) == 0, line
files = {name.partition(".")[0]: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
print(*sorted(name for name, file in files.items() if file.startswith(sys.argv[1])), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """An import folder with only NumPy, Pillow, pydicom, ONNX Runtime and mtlkit."""
    folder = tmp_path_factory.mktemp("packages")
    for package in PACKAGES:
        distribution = importlib.metadata.distribution(package)
        for top in {Path(file).parts[0] for file in distribution.files or () if not str(file).startswith("..")}:
            (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    (folder / "mtlkit").symlink_to(Path(mtlkit.__file__).parent)
    return folder


def test_without_torch(bare, small_lesion, small_views, small_mammography, image, draw_phantoms, tmp_path):
    """Masks, overlays, tables, DICOM: the same as with torch, with only the packages of the extra installed."""
    image("scans/a.png", 40, 52)
    image("scans/more/b.jpg", 133, 121, seed=1)
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 30).save(tmp_path / "scans/e.tif")
    dicom = Path(get_testdata_file("examples_rgb_color.dcm", download=False))
    (tmp_path / "scans/d.dcm").write_bytes(dicom.read_bytes())
    (tmp_path / "masks/more").mkdir(parents=True)
    exams = draw_phantoms("mammography", 5) / "CMMD"
    for name, size in (("a", (40, 52)), ("more/b", (133, 121)), ("d", (240, 320)), ("e", (20, 30))):
        mask = np.zeros(size, np.uint8)
        mask[5:15, 10:25] = 255
        Image.fromarray(mask).save(tmp_path / f"masks/{name}.png")
    calls = {
        "lesion": (small_lesion, tmp_path / "scans", {}),
        "views": (small_views, tmp_path / "scans", {"masks": tmp_path / "masks"}),
        "mammography": (small_mammography, exams, {}),
    }
    lines = []
    for name, (pair, inputs, options) in calls.items():
        predict(pair.run, inputs, tmp_path / f"torch-{name}", **options)
        flags = [part for option, value in options.items() for part in (f"--{option}", str(value))]
        lines.append("\t".join([str(pair.file), str(inputs), "--out", str(tmp_path / f"bare-{name}"), *flags]))
    command = [sys.executable, "-I", "-S", "-c", SCRIPT, str(bare)]
    process = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr.split() == ["PIL", "mtlkit", "numpy", "onnxruntime", "pydicom"]
    assert "bare-views/predictions.csv: 4 predictions" in process.stdout
    for name in calls:
        assert_same(tmp_path / f"bare-{name}", tmp_path / f"torch-{name}")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def changed(small_lesion, tmp_path):
    """Writes the file of the small lesion network with other metadata: changed(facts), or None for no metadata."""

    def write(facts: dict | None) -> Path:
        model = onnx.load(small_lesion.file)
        del model.metadata_props[:]
        if facts is not None:
            model.metadata_props.add(key=_library.FACTS, value=json.dumps(facts))
        onnx.save(model, tmp_path / "net.onnx")
        return tmp_path / "net.onnx"

    return write


def known(pair) -> dict:
    return deploy.facts_of(deploy.open_session(pair.file))


def test_foreign_and_damaged_files(changed, small_lesion, image, tmp_path, monkeypatch):
    path = image("a.png")

    def refused(words: str, file: Path) -> None:
        with pytest.raises(DataError, match=f"^{re.escape(str(file))}: {words}"):
            predict(file, path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    facts = known(small_lesion)
    refused(
        "has no metadata of mtlkit, so that it is not known .*; `mtlkit export` writes a file that has it$",
        changed(None),
    )
    bare = {name: facts[name] for name in ("mtlkit", "format", "network", "operators", "weights")}
    refused("was exported from a bare network, .*; export the run instead$", changed(bare))
    refused("expected metadata of version 1 or before, got 2; a later mtlkit wrote it$", changed(facts | {"format": 2}))
    refused("expected operators of version 1 or before, got 2; a later", changed(facts | {"operators": 2}))
    words = r"its metadata are not as mtlkit writes them \(size: expected an integer, got None\)"
    refused(words, changed(facts | {"size": None}))
    refused(
        "its metadata are of another network than that from images to seg_logits, cls_logits, gates$",
        changed(facts | {"logits": {"class": "label_logits"}}),
    )
    refused("its metadata are of another network", changed(facts | {"inputs": ["views", "present"]}))
    file = changed(facts)
    file.write_bytes(file.read_bytes()[:-200])
    refused("cannot be opened by ONNX Runtime", file)
    file.write_bytes(b"")
    refused("cannot be opened by ONNX Runtime", file)
    refused("there is no such file", tmp_path / "none.onnx")


def test_images_of_another_shape(small_lesion):
    network = open_network(small_lesion.file)
    for shape in ((1, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match=r"net.onnx: images: expected shape \(batch, 3, height, width\), got \("):
            network({"images": np.zeros(shape, np.float32)})


def test_a_file_of_another_channel_count(small_lesion, image, tmp_path):
    model = onnx.load(small_lesion.file)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    for node in model.graph.node:
        node.input[:] = ["images3" if name == "images" else name for name in node.input]
    tile = onnx.helper.make_node("Concat", ["images"] * 3, ["images3"], axis=1)
    model.graph.node.insert(0, tile)
    onnx.save(model, tmp_path / "net.onnx")
    words = r"net.onnx: images: expected shape \(batch, 1, height, width\), got \(1, 3, 32, 32\)$"
    with pytest.raises(ValueError, match=words):
        predict(tmp_path / "net.onnx", image("a.png"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_library(small_lesion, small_mammography, draw_phantoms, image, tmp_path, monkeypatch):
    """A file with mtlkit's operators needs the library; one with only standard operators does not."""
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mtlkit\.deploy\.library_path\(\) found nothing there"):
        predict(small_lesion.file, image("a.png"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert predict(small_mammography.file, draw_phantoms("mammography", 5) / "CMMD", tmp_path / "out").rows


def test_answers_that_are_no_numbers(small_lesion, image, tmp_path):
    model = onnx.load(small_lesion.file)
    for tensor in model.graph.initializer:
        if "classify" in tensor.name and "bias" in tensor.name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), tensor.name))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(FloatingPointError, match=r"net.onnx: the network's output for a is NaN or infinite"):
        predict(tmp_path / "net.onnx", image("a.png"), tmp_path / "out")


def test_resumed_and_refused(small_lesion, image, tmp_path):
    """A file continues its own predictions, but not those of its run, which differ by rounding."""
    for i in range(3):
        image(f"scans/{i}.png", seed=i)
    whole = predict(small_lesion.file, tmp_path / "scans", tmp_path / "out", batch_size=2)
    assert predict(small_lesion.file, tmp_path / "scans", tmp_path / "out", batch_size=2, resume=True) == whole
    words = r"run: expected .*net\.onnx.*, of the prediction to be continued, got '/runs/one'"
    with pytest.raises(DataError, match=words):
        predict(small_lesion.run, tmp_path / "scans", tmp_path / "out", batch_size=2, resume=True)
    again = predict(small_lesion.file, tmp_path / "scans", tmp_path / "out", batch_size=2, force=True)
    assert again == whole


# --- the command ------------------------------------------------------------------------------------------------------


def test_command(small_lesion, image, tmp_path, capsys):
    file, path = str(small_lesion.file), str(image("scan 7.png"))
    assert (
        main(["predict", file, path, "--engine", "onnxruntime", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "class", "pixels"]
    assert lines[2].startswith("scan 7  ")
    assert lines[-1].startswith(f"{tmp_path}/out/predictions.csv: 1 predictions, ")

    def failing(*arguments: object) -> str:
        assert main(["predict", *map(str, arguments), path, "--out", str(tmp_path / "none")]) == 2
        assert not (tmp_path / "none").exists()
        return capsys.readouterr().err.removeprefix("mtlkit: ").strip()

    assert failing(file, "--device", "cuda") == f"--device cuda: {file} is an ONNX file, which runs only on the CPU"
    assert "engine: expected 'onnxruntime' for" in failing(file, "--engine", "torch")
    assert "; `mtlkit export` writes a run as a file" in failing(tmp_path, "--engine", "onnxruntime")
    assert failing(file, "--max-pixels", 100).endswith("; --max-pixels raises the limit")
    assert "batch_size: expected at least 1, got 0" in failing(file, "--batch-size", 0)


def test_missing_packages_are_named_by_the_extra(small_lesion, image, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["predict", str(small_lesion.file), str(image("a.png")), "--out", str(tmp_path / "out")]) == 2
    words = "`mtlkit predict` needs onnxruntime, which is not installed: pip install 'mtlkit[predict]'"
    assert capsys.readouterr().err == f"mtlkit: {words}\n"
