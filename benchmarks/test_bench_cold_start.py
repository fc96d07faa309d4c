"""Cold start: a new process imports, opens a network and predicts its first image, from a file and from a run.

`pytest benchmarks -k cold_start --benchmark-only` measures only these rows. Both processes write the same predictions
up to rounding. `resident_bytes` is the memory of a process after the image, `peak_bytes` its maximum.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from comparisons import FRAME, INFERENCE
from measuring import Key
from networks import network
from preparing import Export, file_of

from mtlkit.data import synthesize_ultrasound
from mtlkit.training import load_config, load_run

PROVIDERS = ("mtlkit-onnx", "pytorch")
CLASSES = ("benign", "malignant", "normal")
THREADS = "2"
PROGRAM = """
import json, sys
from mtlkit.inference import predict
(row,) = predict(*sys.argv[1:], force=True).rows
with open("/proc/self/status") as status:
    kilobytes = {line.partition(":")[0]: int(line.split()[1]) for line in status if line.startswith("Vm")}
p = [value for name, value in row.items() if "_p_" in name]
json.dump({"p": p, "resident_bytes": 1024 * kilobytes["VmRSS"], "peak_bytes": 1024 * kilobytes["VmHWM"]}, sys.stdout)
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    """MBDI with its initial weights, as a run folder and as the file of preparing.py."""
    folder = tmp_path_factory.mktemp("cold") / "run"
    folder.mkdir()
    config = load_config("mbdi").adjust({"model": {"options": {"pretrained": False, "num_classes": len(CLASSES)}}})
    network("mbdi").save_pretrained(folder / "model")
    config.save(folder / "config.yaml")
    data = {"root": str(folder), "layout": "busi", "classes": CLASSES, "birads": [], "prints": {}}
    for name, value in (("data.json", data), ("result.json", {}), (".mtlkit-run", None)):
        (folder / name).write_text(json.dumps(value))
    model, file = onnx.load(file_of(Export("mbdi", FRAME))), folder.with_name("net.onnx")
    (facts,) = model.metadata_props
    facts.value = json.dumps(json.loads(facts.value) | load_run(folder).facts())
    onnx.save(model, file)
    return {"mtlkit-onnx": file, "pytorch": folder}


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    synthesize_ultrasound(folder, cases=3, size=500)
    return next(path for path in sorted(folder.rglob("*.png")) if "mask" not in path.name)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports memory in this form")
@pytest.mark.prepared(by=lambda provider: Export("mbdi", FRAME))
@pytest.mark.row(key=lambda provider: Key("cold_start", FRAME, INFERENCE, provider))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_cold_start(provider: str, networks: dict[str, Path], image: Path, measure, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": THREADS}

    memory: dict[str, int] = {}

    def start(name: str = provider) -> list[float]:
        command = [sys.executable, "-c", PROGRAM, networks[name], image, tmp_path / name]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found = json.loads(process.stdout)
        memory.update({key: value for key, value in found.items() if key != "p"})
        return found["p"]

    expected = torch.tensor(start(PROVIDERS[0]))

    def check(found: list[float]) -> tuple[float, None]:
        error = (torch.tensor(found) - expected).abs().max().item()
        assert error < 1e-4, f"{provider}: the probabilities differ by {error:.1e} from those of {PROVIDERS[0]}"
        return error, None

    row = measure(start, check, unit=("images", 1), network="mbdi", threads=int(THREADS))
    row |= memory
