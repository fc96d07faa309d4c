"""Networks of runs: what they say is what the run says."""

import numpy as np
import torch

from mtlkit.inference import open_network
from mtlkit.inference.torch_networks import RunNetwork, digest_of_weights
from mtlkit.training import SavedRun


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
