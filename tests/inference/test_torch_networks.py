"""Networks of runs give the results of the run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlkit.cli import main
from mtlkit.data import DataError
from mtlkit.inference import open_network
from mtlkit.inference.torch_networks import Ensemble, RunNetwork, digest_of_weights
from mtlkit.training import SavedRun
from mtlkit.training.calibration import Calibration


def test_a_run_says_what_it_says(small_lesion):
    run = small_lesion.run
    network = open_network(run, device="cpu")
    assert isinstance(network, RunNetwork)
    images = torch.rand(3, 3, 32, 32)
    expected = run.predict({"image": images})
    found = network({"images": images.numpy()})
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name].numpy())
    assert (network.device, network.source, network.weights) == ("cpu", run.folder, digest_of_weights(run.model))
    facts = network.facts
    assert (facts.inputs, facts.size, facts.batch_size, facts.workers) == (("images",), 32, 4, 0)
    assert facts.classes == {"class": run.classes}
    assert facts.gates == ("seg_level1", "clf_level1")


def test_images_that_are_not_normalised(small_lesion):
    run = small_lesion.run
    plain = SavedRun(**{**vars(run), "config": run.config.change({"data": {"normalize": False}})})
    assert (open_network(plain).facts.mean, open_network(plain).facts.std) == (None, None)


# --- several runs -----------------------------------------------------------------------------------------------------


def test_an_ensemble_says_the_mean_of_what_its_networks_say(small_lesion):
    run = small_lesion.run
    warm = replace(run, calibration={"class": Calibration(3.0)})
    networks = [RunNetwork(run), RunNetwork(warm)]
    ensemble = Ensemble(Path("/runs/cv"), networks)
    inputs = {"images": np.random.default_rng(0).random((2, 3, 32, 32), np.float32)}
    first, second = (network(inputs) for network in networks)
    assert not np.allclose(first["class"], second["class"])
    for name, value in ensemble(inputs).items():
        np.testing.assert_allclose(value, (first[name] + second[name]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(ensemble.uncalibrated()(inputs)["class"], first["class"])
    other = replace(run, config=run.config.change({"data": {"size": 64}}))
    with pytest.raises(DataError, match=r"/runs/cv: expected runs of one recipe"):
        Ensemble(Path("/runs/cv"), [RunNetwork(run), RunNetwork(other)])


def test_a_folder_of_folds_is_an_ensemble(tmp_path, draw_phantoms, capsys):
    """From training to predictions; the inputs are prepared as in each fold's own prediction."""
    ultrasound = draw_phantoms("ultrasound", 24)
    settings = ["data.size=32", "data.batch_size=4", "stopping.epochs=1", "second_stage=null"]
    settings += ["model.options.decoder_dims=[16, 16, 12, 8]", "model.options.clf_dim=16"]
    command = ["train", "demo", "--data", str(ultrasound), "--out", str(tmp_path / "cv"), "--folds", "2"]
    assert main([*command, *(word for setting in settings for word in ("--set", setting))]) == 0
    scan = str(next((ultrasound / "benign").glob("*[0-9]).png")))
    rows = {}
    for name in ("cv", "cv/fold-1", "cv/fold-2"):
        out = tmp_path / "found" / name.replace("/", "-")
        assert main(["predict", str(tmp_path / name), scan, "--out", str(out), "--device", "cpu"]) == 0
        rows[name] = json.loads((out / "predictions.json").read_text())["rows"][0]
    shares = [rows[f"cv/fold-{number}"]["class_p_benign"] for number in (1, 2)]
    assert rows["cv"]["class_p_benign"] == pytest.approx(sum(shares) / 2, abs=1e-6)
    assert "mean of 2 networks" in capsys.readouterr().out
