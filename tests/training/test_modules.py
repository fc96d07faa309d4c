"""The three kinds of training: losses computed by hand, the second stage's parameters, and invalid combinations."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mtlkit import losses, training
from mtlkit.data import LesionDataset, MammographyDataset, Split, make_split, open_dataset
from mtlkit.training import RecipeError, create_module, load_config


@pytest.fixture
def lesions(ultrasound, small):
    catalogue = open_dataset(ultrasound, classes=small.data.classes)
    return next(iter(torch.utils.data.DataLoader(LesionDataset(catalogue.records, 32), batch_size=6, shuffle=True)))


@pytest.fixture
def four_views():
    """The recipe of the hybrid network with the smallest encoder, and batches of exams."""
    options = {"backbone": "vssm", "depths": [1], "dims": [16], "d_state": 1, "birads_classes": 5}
    changes = {"model": {"options": options}, "data": {"size": 32}}
    return load_config("hybrid_vssm").change(changes)


# --- all kinds --------------------------------------------------------------------------------------------------------


def test_dropout_differs_between_seeds_epochs_batches_processes_and_stages(small, monkeypatch):
    """It is the same if all of these are equal, regardless of earlier random draws."""
    masks, dropout, module = {}, torch.nn.Dropout(0.5), create_module(small)
    configs = {seed: small.change({"seed": seed}) for seed in (1, 2)}
    for seed, epoch, index, rank, gates_only in itertools.product(configs, range(3), range(3), range(2), (False, True)):
        monkeypatch.setattr(module, "config", configs[seed])
        monkeypatch.setattr(module, "gates_only", gates_only)
        for name, value in (("current_epoch", epoch), ("global_rank", rank)):
            monkeypatch.setattr(type(module), name, value)
        drawn = []
        for _ in range(2):
            module.on_train_batch_start({}, index)
            drawn.append(dropout(torch.ones(128)))
        assert torch.equal(*drawn)
        masks[seed, epoch, index, rank, gates_only] = drawn[0].numpy().tobytes()
    assert len(set(masks.values())) == len(masks) == 72


# --- lesion -----------------------------------------------------------------------------------------------------------


def test_lesion_losses(small, lesions):
    module = create_module(small).eval()
    values, output = module.compute_losses(lesions)
    c = small.loss
    segmentation = losses.SegmentationLoss(c.tversky, c.boundary, c.texture, size_boost=c.size_boost)
    expected = segmentation(output.seg_logits, lesions["mask"])
    classes = losses.focal_cross_entropy(output.cls_logits, lesions["label"])
    torch.testing.assert_close(values["segmentation"], expected)
    torch.testing.assert_close(values["classification"], classes)
    torch.testing.assert_close(values["loss"], c.first * expected + c.second * classes)
    assert set(values) == {"segmentation", "classification", "loss"}


def test_images_without_mask_teach_the_class_alone(small, lesions):
    module = create_module(small).eval()
    whole, _ = module.compute_losses(lesions)
    none, _ = module.compute_losses(lesions | {"segmented": torch.zeros(6, dtype=torch.bool)})
    assert none["segmentation"] == 0
    assert none["classification"] == whole["classification"]
    some = torch.tensor([True] * 3 + [False] * 3)
    half, _ = module.compute_losses(lesions | {"segmented": some})
    first = {name: value[:3] for name, value in lesions.items()}
    torch.testing.assert_close(half["segmentation"], module.compute_losses(first)[0]["segmentation"])


def test_second_stage_moves_the_gates_alone(small, lesions):
    config = small.change({"second_stage": {"loss": {"gates": 1.0}}}).stage(2)
    module = create_module(config, gates_only=True).train()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    optimizer = module.configure_optimizers()
    for _ in range(2):
        optimizer.zero_grad()
        values, output = module.compute_losses(lesions)
        values["loss"].backward()
        optimizer.step()
    moved = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".upa." in name for name in moved), moved
    gates = losses.gate_loss(output.gates[..., 0].T, losses.segmentation_difficulty(output.seg_logits, lesions["mask"]))
    gates = gates + losses.gate_loss(output.gates[..., 1].T, losses.classification_difficulty(output.cls_logits))
    torch.testing.assert_close(values["gates"], gates)
    expected = values["segmentation"] * 0.7 + values["classification"] * 0.3 + gates
    torch.testing.assert_close(values["loss"], expected)


def test_class_weights_of_lesions_are_those_of_the_training_part(small, ultrasound, lesions):
    catalogue = open_dataset(ultrasound, classes=small.data.classes)
    split = make_split(catalogue, small.data.fractions)
    module = create_module(small.change({"loss": {"class_weights": True}}), catalogue, split).eval()
    plain = create_module(small, catalogue, split).eval()
    plain.load_state_dict(module.state_dict())
    labels = torch.tensor([record.label for record in catalogue.subset(split.train).records])
    weight = losses.class_weights(labels, 3)
    assert len(set(weight.tolist())) > 1
    values, output = module.compute_losses(lesions)
    expected = losses.focal_cross_entropy(output.cls_logits, lesions["label"], weight)
    torch.testing.assert_close(values["classification"], expected)
    assert not torch.isclose(expected, plain.compute_losses(lesions)[0]["classification"])
    with pytest.raises(ValueError, match="catalogue, split: expected both, to compute class weights"):
        create_module(small.change({"loss": {"class_weights": True}}))


def test_lesion_figures(small, lesions):
    module = create_module(small).eval()
    _, output = module.compute_losses(lesions)
    metrics = module.metrics["valid"]
    module._update(metrics, output, lesions)
    figures = module._figures(metrics)
    accuracy = (output.cls_logits.argmax(1) == lesions["label"]).float().mean()
    torch.testing.assert_close(figures["accuracy"], accuracy)
    torch.testing.assert_close(figures["combined"], 0.7 * figures["iou"] + 0.3 * accuracy)
    assert figures["empty"] == (lesions["mask"].flatten(1).sum(1) == 0).sum()


# --- views ------------------------------------------------------------------------------------------------------------


def test_views(lesions):
    config = load_config("csa_moe").change({"model": {"options": {"num_classes": 3}}})
    module = create_module(config).eval()
    values, output = module.compute_losses(lesions)
    torch.testing.assert_close(values["loss"], F.cross_entropy(output.cls_logits, lesions["label"]))
    module._update(module.metrics["valid"], output, lesions)
    assert set(module._figures(module.metrics["valid"])) >= {"accuracy", "auc", "f1_macro"}
    assert {"loss", "accuracy", "gate_image", "gate_boundary"} < set(module.figure_names())


def test_class_weights_of_views(ultrasound, small, lesions):
    config = load_config("csa_moe").change({"model": {"options": {"num_classes": 3}}, "loss": {"class_weights": True}})
    catalogue = open_dataset(ultrasound, classes=small.data.classes)
    split = make_split(catalogue, (0.6, 0.2, 0.2))
    values, output = create_module(config, catalogue, split).eval().compute_losses(lesions)
    labels = torch.tensor([record.label for record in catalogue.subset(split.train).records])
    expected = F.cross_entropy(output.cls_logits, lesions["label"], losses.class_weights(labels, 3))
    torch.testing.assert_close(values["loss"], expected)


# --- mammography ------------------------------------------------------------------------------------------------------


def exams(folder, birads=(1, 2, 3, 4, 5)):
    catalogue = open_dataset(folder, birads=birads)
    return catalogue, next(iter(torch.utils.data.DataLoader(MammographyDataset(catalogue.records, 32), batch_size=8)))


def test_mammography_losses(mammograms, four_views):
    catalogue, batch = exams(mammograms)
    split = make_split(catalogue, (0.8, 0.2, 0.0))
    module = create_module(four_views, catalogue, split).eval()
    values, output = module.compute_losses(batch)
    train = catalogue.subset(split.train).records
    expected = []
    for task, logits, count in (("label", output.label_logits, 2), ("birads", output.birads_logits, 5)):
        known = torch.tensor([getattr(exam, {"label": "labels", "birads": "birads"}[task]) for exam in train])
        weight = losses.class_weights(known, count)
        sides = [F.cross_entropy(logits[:, i], batch[task][:, i], weight, ignore_index=-1) for i in range(2)]
        expected.append((sides[0] + sides[1]) / 2)
        torch.testing.assert_close(values[task], expected[-1])
    torch.testing.assert_close(values["loss"], 0.5 * expected[0] + 0.5 * expected[1])


def test_a_side_that_no_exam_has_is_survived(mammograms, four_views):
    _, batch = exams(mammograms)
    module = create_module(four_views.change({"loss": {"class_weights": False}}))
    for name in ("label", "birads"):
        batch[name][:, 0] = -1
    values, _ = module.compute_losses(batch)
    values["loss"].backward()
    assert values["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("task", ["label", "birads"])
def test_a_single_task_is_its_loss(mammograms, four_views, task):
    config = four_views.change({"loss": {"class_weights": False}})
    config = config.change({"model": {"options": dict(config.model.options) | {"tasks": [task]}}})
    values, _ = create_module(config).compute_losses(exams(mammograms)[1])
    assert set(values) == {task, "loss"}
    assert values["loss"] == values[task]


def test_mammography_figures(mammograms, four_views):
    _, batch = exams(mammograms)
    module = create_module(four_views.change({"loss": {"class_weights": False}})).eval()
    _, output = module.compute_losses(batch)
    module._update(module.metrics["valid"], output, batch)
    figures = module._figures(module.metrics["valid"])
    torch.testing.assert_close(figures["combined"], figures["label_auc"] + figures["birads_auc"])
    assert figures["label_images"] == (batch["label"] >= 0).sum()


# --- invalid combinations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "task"),
    [
        ("unet", {"encoder": "resnet18", "pretrained": False}, "lesion"),
        ("segresnet", {}, "lesion"),
        ("csa_moe", {"pretrained": False}, "views"),
        ("mammo_vssm", {}, "mammography"),
    ],
)
def test_networks_and_tasks(name, options, task):
    config = load_config("hybrid_vssm").change({"loss": {"class_weights": False}, "model": {"options": {}}})
    for other in ("lesion", "views", "mammography"):
        asked = config.change({"task": other, "model": {"name": name, "options": options}})
        if other == task:
            assert create_module(asked).config.task == task
        else:
            with pytest.raises(ValueError, match=f"model.name: {name} does not support the task '{other}'"):
                create_module(asked)


def test_what_does_not_fit(ultrasound, mammograms, small, four_views):
    catalogue = open_dataset(ultrasound, classes=("benign", "malignant"))
    with pytest.raises(
        ValueError, match=r"model.options.num_classes: expected 2, the number of classes in the data, got 3"
    ):
        create_module(small, catalogue)
    with pytest.raises(ValueError, match=r"model.name: medmamba_t does not support the task 'lesion'"):
        create_module(small.change({"model": {"name": "medmamba_t", "options": {}}}))
    with pytest.raises(ValueError, match="contains four-view mammograms, which the task 'lesion' does not accept"):
        create_module(small, open_dataset(mammograms))
    with pytest.raises(
        ValueError, match=r"model.options.birads_classes: expected 2, the number of classes in the data, got 5"
    ):
        create_module(four_views, open_dataset(mammograms, birads=(1, 5)))
    with pytest.raises(ValueError, match="catalogue, split: expected both, to compute class weights"):
        create_module(four_views)
    data = open_dataset(mammograms)
    healthy = tuple(replace(exam, labels=(0, 0)) for exam in data.records)
    with pytest.raises(ValueError, match="labels: there is no example of class 1"):
        create_module(four_views, replace(data, records=healthy), Split(tuple(e.key for e in healthy), (), ()))
    with pytest.raises(ValueError, match="encodr: btinet has no such option"):
        create_module(small.change({"model": {"options": {"encodr": "resnet18"}}}))
    options = {"num_classes": 3.5, "tim": 1, "levels": [1, "2"], "pooling": "max", "dropout": 0}
    with pytest.raises(RecipeError) as error:
        create_module(small.change({"model": {"options": options}}))
    assert str(error.value).splitlines()[1:] == [
        "  model.options.num_classes: expected an integer, got 3.5",
        "  model.options.tim: expected true or false, got 1",
        "  model.options.levels[1]: expected an integer, got '2'",
        "  model.options.pooling: expected one of 'mean', 'attention', got 'max'",
    ]


def test_names_of_before_are_the_module_of_today(small):
    with pytest.warns(DeprecationWarning, match=r"mtlkit.training.LesionModule is TrainingModule now"):
        module = training.LesionModule(create_module(small).model, small)
    assert isinstance(module, training.TrainingModule)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizer(small, name, kind):
    config = small.change({"optimizer": {"name": name, "betas": [0.91, 0.999], "eps": 1e-7, "weight_decay": 0.05}})
    optimizer = create_module(config).configure_optimizers()
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.91, 0.999), 1e-7, 0.05)


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-true", True), ("bf16-mixed", None)])
def test_the_optimizer_is_fused_unless_lightning_could_not_clip(small, precision, fused):
    module = create_module(small.change({"precision": precision}))
    assert module.configure_optimizers().param_groups[0]["fused"] is fused


def test_frozen_layers_are_not_trained(small):
    module = create_module(small)
    trained = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    frozen = [p for p in module.model.parameters() if not p.requires_grad]
    assert frozen
    assert not trained & {id(p) for p in frozen}
    assert len(trained) + len(frozen) == len(list(module.model.parameters()))


def test_momentum_of_batch_norm(small):
    for momentum, expected in ((None, 0.01), (0.3, 0.3)):
        module = create_module(small.change({"model": {"batch_norm_momentum": momentum}}))
        norms = [m for m in module.model.decoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        assert {m.momentum for m in norms} == {expected}


@pytest.mark.parametrize("name", ["mbdi", "btinet"])
def test_recipes_make_their_networks(name):
    config = load_config(name)
    options = dict(config.model.options) | {"pretrained": False}
    module = create_module(config.change({"model": {"options": options}}))
    # B4's stem and first two stages, except the end of the second stage's last block
    frozen = sum(p.numel() for p in module.model.parameters() if not p.requires_grad)
    assert 0 < frozen < 100_000
    assert sum(p.numel() for p in module.model.parameters()) > 57_000_000
