"""Networks in folders and on the Hub: round trip, other dtypes and options, foreign and damaged checkpoints."""

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from mtlkit.models import MedMamba, Origin, Result, VMamba, create_model, from_pretrained, pretrained
from mtlkit.models.card import print_of_parameters

TINY = {"depths": (1, 1), "dims": (16, 32), "num_classes": 3}


@pytest.fixture
def folder(tmp_path):
    create_model("medmamba_t", **TINY).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def fresh():
    """Removes what was imported from huggingface_hub: now, after the test, and when called."""
    forget = pretrained._checkpoint_class.cache_clear
    forget()
    yield forget
    forget()


def test_round_trip(tmp_path):
    model = create_model("medmamba_t", **TINY).eval()
    model.save_pretrained(tmp_path / "new")
    images = torch.rand(2, 3, 32, 40)
    for load in (MedMamba.from_pretrained, from_pretrained):
        twin = load(tmp_path / "new").eval()
        assert type(twin) is MedMamba
        assert twin.options == model.options
        assert torch.equal(twin(images), model(images))


def test_files_are_readable_by_others(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == "MedMamba"
    assert config["options"]["dims"] == [16, 32]
    assert "library_name: mtlkit" in (folder / "README.md").read_text()
    state = load_file(folder / "model.safetensors")
    assert set(state) == set(create_model("medmamba_t", **TINY).state_dict())


def test_dtype_and_device(folder):
    twin = from_pretrained(folder, dtype=torch.float64, device="cpu")
    assert twin.head.weight.dtype == torch.float64
    assert torch.equal(twin.head.weight, MedMamba.from_pretrained(folder).head.weight.double())


class FakeHub:
    """The files on the Hub in a folder, with the methods of HfApi that uploads call."""

    def __init__(self, folder):
        self.folder, self.uploads = folder, []
        folder.mkdir()

    def create_repo(self, repo_id, **_):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def file_exists(self, repo_id, filename, *, revision=None):
        return (self.folder / filename).is_file()

    def hf_hub_download(self, repo_id, filename, *, revision=None, local_dir=None):
        (Path(local_dir) / filename).write_bytes((self.folder / filename).read_bytes())

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns=None, **_):
        self.uploads.append(repo_id)
        for path in folder_path.iterdir():
            if path.name not in (ignore_patterns or []):
                (self.folder / path.name).write_bytes(path.read_bytes())
        return f"https://example.org/{repo_id}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = FakeHub(tmp_path / "hub")
    for name in ("create_repo", "file_exists", "hf_hub_download", "upload_folder"):
        call = getattr(hub, name)
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda _, *given, call=call, **more: call(*given, **more))
    return hub


def test_push_and_load_from_the_hub(folder, hub, fresh):
    model = from_pretrained(folder)
    assert model.push_to_hub("someone/tiny", licence="mit") == "https://example.org/someone/tiny"
    card = huggingface_hub.ModelCard.load(hub.folder / "README.md")
    assert card.data.license == "mit"
    assert 'from_pretrained("someone/tiny")' in card.text

    known = set(inspect.signature(huggingface_hub.hf_hub_download).parameters)

    def download(*, repo_id, filename, revision, **others):
        assert (repo_id, revision) == ("someone/tiny", "v1")
        assert set(others) <= known
        return str(hub.folder / filename)

    fresh()
    with (
        patch("huggingface_hub.hub_mixin.hf_hub_download", download),
        patch("huggingface_hub.hf_hub_download", download),
    ):
        twin = from_pretrained("someone/tiny", revision="v1")
    assert torch.equal(twin.head.weight, model.head.weight)
    assert twin.licence == "mit"


def test_an_edited_card_stays_on_the_hub(folder, hub):
    model = from_pretrained(folder)
    model.push_to_hub("someone/tiny")
    model.push_to_hub("someone/tiny", licence="mit")  # unchanged since mtlkit wrote it: replaced
    assert "license: mit" in (hub.folder / "README.md").read_text()
    (hub.folder / "README.md").write_text("mine")
    with torch.no_grad():
        model.head.bias += 1
    for ignored in (None, "*.txt", ["*.txt"]):
        with pytest.warns(
            UserWarning, match=r"README.md of someone/tiny: was edited or comes from elsewhere, and is kept"
        ):
            model.push_to_hub("someone/tiny", ignore_patterns=ignored)
    assert (hub.folder / "README.md").read_text() == "mine"
    assert torch.equal(load_file(hub.folder / "model.safetensors")["head.bias"], model.head.bias)


def test_saving_and_pushing_in_one(folder, hub, tmp_path):
    from_pretrained(folder).save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="someone/tiny")
    assert hub.uploads == ["someone/tiny"]
    for place in (hub.folder, tmp_path / "new"):
        assert 'from_pretrained("someone/tiny")' in (place / "README.md").read_text()


# --- the model card ---------------------------------------------------------------------------------------------------


def test_a_card_is_written_again_with_its_network(folder, recwarn):
    model = from_pretrained(folder)
    model.save_pretrained(folder, licence="mit")
    assert huggingface_hub.ModelCard.load(folder / "README.md").data.license == "mit"
    from_pretrained(folder).save_pretrained(folder)
    assert huggingface_hub.ModelCard.load(folder / "README.md").data.license == "mit"
    assert not recwarn.list


@pytest.mark.parametrize("config", ["kept", "gone", "damaged"])
def test_an_edited_card_stays(folder, config):
    model = from_pretrained(folder)
    edited = (folder / "README.md").read_text() + "Ask us.\n"
    (folder / "README.md").write_text(edited)
    if config == "gone":
        (folder / "config.json").unlink()
    if config == "damaged":
        (folder / "config.json").write_text("[")
    for _ in range(2):
        with pytest.warns(
            UserWarning, match=r"README.md: was edited or comes from elsewhere, and is kept; to get a new one, delete"
        ):
            model.save_pretrained(folder)
        assert (folder / "README.md").read_text() == edited
    assert torch.equal(from_pretrained(folder).head.weight, model.head.weight)


def test_origins_come_with_their_parameters(folder, tmp_path):
    model = from_pretrained(folder)
    result = Result("BUSI", "test", {"accuracy": (0.9, 0.8, 1.0)})
    model.origin = Origin(print_of_parameters(model), "medmamba_t", "BUSI", results=(result,))
    model.save_pretrained(tmp_path / "a")
    twin = from_pretrained(tmp_path / "a")
    assert twin.origin == model.origin
    twin.save_pretrained(tmp_path / "b")
    assert huggingface_hub.ModelCard.load(tmp_path / "b" / "README.md").data.eval_results[0].metric_value == 0.9
    with pytest.warns(UserWarning, match="newly initialised"):
        other = from_pretrained(tmp_path / "b", num_classes=5)
    other.save_pretrained(tmp_path / "c")
    assert huggingface_hub.ModelCard.load(tmp_path / "c" / "README.md").data.eval_results is None


def test_a_damaged_origin_does_not_stop_loading(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"origin": {"data": 5}}))
    with pytest.warns(
        UserWarning,
        match=r"config.json: origin: expected the form that mtlkit writes.*, so it is missing from the model card",
    ):
        assert from_pretrained(folder).origin is None


# --- options ----------------------------------------------------------------------------------------------------------


def test_another_number_of_classes_makes_a_new_head(folder):
    stored = from_pretrained(folder)
    with pytest.warns(UserWarning, match=r"MedMamba: newly initialised, not loaded; train .* head.weight, head.bias$"):
        twin = MedMamba.from_pretrained(folder, num_classes=5)
    assert twin.options == replace(stored.options, num_classes=5)
    assert twin.head.out_features == 5
    loaded = {name: value for name, value in twin.state_dict().items() if not name.startswith("head.")}
    assert all(torch.equal(value, stored.state_dict()[name]) for name, value in loaded.items())


def test_each_head_of_several_is_fresh_where_its_classes_change(tmp_path):
    create_model("hybrid_vssm", dims=(128, 256), label_classes=2).save_pretrained(tmp_path)
    with pytest.warns(
        UserWarning, match=r"train .*: heads.birads_left.weight, heads.birads_left.bias, .*right.bias$"
    ) as found:
        twin = from_pretrained(tmp_path, birads_classes=3)
    assert "label" not in str(found[0].message)
    assert twin.options.birads_classes == 3


def test_rates_change_without_a_word(folder, recwarn):
    twin = from_pretrained(folder, drop_path_rate=0.3, num_classes=3)
    assert twin.layers[1].blocks[0].drop_path.p == pytest.approx(0.3)
    assert torch.equal(twin.head.weight, from_pretrained(folder).head.weight)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 8}, r"d_state: expected 16 as stored, got 8; .*'layers.0.blocks.0.self_attention.x_proj_weight'"),
        (
            {"in_chans": 1, "num_classes": 5},
            r"in_chans: expected 3 as stored, got 1; .*'patch_embed.proj.weight', \(16, 3",
        ),
        ({"depths": [1, 2], "drop_path_rate": 0.0}, r"depths: expected \(1, 1\) as stored, got .*, which is missing"),
        ({"depths": (1,), "dims": (16,)}, r"depths, dims: expected as stored"),
    ],
)
def test_options_that_change_other_tensors_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder, **options)


def test_unknown_options_are_answered_with_the_known(folder):
    with pytest.raises(
        TypeError, match=r"numclasses: MedMamba has no .* \(did you mean 'num_classes'\?\); it has: num_c"
    ):
        from_pretrained(folder, numclasses=5, revision="main")
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        from_pretrained(folder, num_classes=0)


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.pth", "best.ckpt", "net.PT", "weights.safetensors"])
@pytest.mark.parametrize("there", [True, False])
def test_files_of_parameters_are_answered_with_the_way_to_load_them(tmp_path, name, there):
    if there:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"source: expected a folder .*; it has no options: .*load_published\(model, file\)"
    ):
        from_pretrained(tmp_path / name)


def test_files_of_a_folder_are_answered_with_the_folder(folder):
    with pytest.raises(ValueError, match=rf"got the file .*; pass its folder, '{folder}'"):
        from_pretrained(folder / "model.safetensors")


def test_files_of_a_run_are_answered_with_its_network(tmp_path):
    create_model("medmamba_t", **TINY).save_pretrained(tmp_path / "model")
    (tmp_path / "stage1").mkdir()
    for source in (tmp_path, tmp_path / "stage1" / "best.ckpt"):
        with pytest.raises(ValueError, match=rf"; the network of this run is in '{tmp_path / 'model'}'"):
            from_pretrained(source)


@pytest.mark.parametrize("source", ["./nothing", "/no/such/folder", "runs/mbdi/model", "~/model"])
def test_folders_that_do_not_exist(source):
    with pytest.raises(ValueError, match=r"source: expected a folder or a repository, got .*; there is no such folder"):
        from_pretrained(source)


def test_wrapped_parameters_in_a_folder(folder):
    state = load_file(folder / "model.safetensors")
    save_file({f"module.{name}": value for name, value in state.items()}, folder / "model.safetensors")
    assert torch.equal(from_pretrained(folder).head.weight, state["head.weight"])


# --- foreign and damaged checkpoints ----------------------------------------------------------------------------------


def test_another_network_is_named_with_the_first_key_that_differs(folder):
    with pytest.raises(
        ValueError, match=r"source: expected VMamba, got MedMamba: the first key that differs is 'patch_embed.0.weight'"
    ):
        VMamba.from_pretrained(folder)


def test_damaged_checkpoints_name_the_first_key_that_differs(folder):
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if k != "head.bias"}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"not belong to this MedMamba: .*'head.bias', which is missing"):
        from_pretrained(folder)
    save_file(state | {"tail": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"'tail', which is unknown"):
        from_pretrained(folder)
    save_file(state | {"head.bias": torch.zeros(9)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"'head.bias', \(9,\) instead of \(3,\)"):
        from_pretrained(folder)


def test_foreign_configs(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model": "MedMumba"}))
    with pytest.raises(ValueError, match=r"no network 'MedMumba' \(did you mean 'MedMamba'\?\)"):
        from_pretrained(folder)
    path.write_text(json.dumps(config | {"options": {"speed": 9}}))
    with pytest.raises(ValueError, match="speed: MedMamba has no such option; it has: num_classes"):
        from_pretrained(folder)
    path.write_text(json.dumps({"architectures": ["Bert"]}))
    with pytest.raises(ValueError, match=r"expected a config.json of mtlkit, with model and options, got \['archi"):
        from_pretrained(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"source: expected a folder with config.json and model.safetensors"):
        from_pretrained(folder)


@pytest.mark.parametrize("package", ["huggingface_hub", "safetensors"])
def test_missing_packages_say_what_installs_them(package, fresh):
    blocked = dict.fromkeys((package, f"{package}.torch"))
    with patch.dict(sys.modules, blocked), pytest.raises(ImportError, match=r'pip install "mtlkit\[models\]"'):
        from_pretrained("anywhere")
