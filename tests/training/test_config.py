"""Recipes: the papers' values one by one, files, and an error that names every wrong setting."""

from dataclasses import replace

import pytest
import yaml

from mtlkit.training import Config, RecipeError, list_configs, load_config, recipe_schema


def test_all_load_and_are_read_back(tmp_path):
    assert {"btinet", "csa_moe", "demo", "hybrid_vssm", "mbdi"} < set(list_configs())
    for name in list_configs():
        config = load_config(name)
        config.save(tmp_path / "a.yaml")
        assert load_config(tmp_path / "a.yaml") == config


def test_mbdi():
    c = load_config("mbdi")
    assert (c.model.name, c.model.options["freeze_until"], c.data.classes) == (
        "mbdi",
        "blocks.1.1.bn2",
        ("normal", "benign", "malignant"),
    )
    assert (c.data.fractions, c.data.split_seed, c.data.size, c.data.copies) == ((0.7, 0.15, 0.15), 42, 224, 3)
    assert (c.data.batch_size, c.data.warmup_epochs, c.data.warmup_batches) == (24, 3, 100)
    assert (c.data.augment, c.data.positive) == ("mbdi_elastic", "malignant")
    assert (c.loss.tversky, c.loss.boundary, c.loss.texture, c.loss.focal_gamma) == ("mbdi", 0.25, 0.15, 2.0)
    assert (c.loss.first, c.loss.second, c.loss.ramp_start) == (0.8, 0.2, None)
    o = c.optimizer
    assert (o.name, o.lr, o.betas, o.eps, o.clip, o.weight_decay) == ("adam", 3e-4, (0.91, 0.999), 1e-7, 1.0, 0.0)
    s = c.schedule
    assert (s.cosine_floor, s.factor, s.patience, s.cooldown, s.min_lr) == (0.03, 0.55, 6, 2, 1.5e-6)
    assert (s.monitor, s.mode) == (c.stopping.monitor, c.stopping.mode) == ("val/combined", "max")
    assert (c.stopping.epochs, c.stopping.patience, c.stopping.min_delta) == (100, 22, 0.004)


def test_btinet():
    c = load_config("btinet")
    assert c.data.classes == ("benign", "malignant", "normal")
    assert (c.stopping.epochs, c.stopping.patience, c.data.batch_size, c.data.eval_batch_size) == (50, 22, 8, 16)
    assert (c.loss.first, c.loss.second, c.loss.gates) == (0.82, 0.18, 0.0)
    second = c.stage(2)
    assert (second.optimizer.lr, second.optimizer.betas, second.optimizer.clip) == (3e-4, (0.9, 0.999), 1.0)
    assert (second.loss.first, second.loss.second, second.loss.gates) == (1.0, 1.0, 1.0)
    assert (second.stopping.epochs, second.stopping.patience, second.stopping.monitor) == (15, 5, "val/loss")
    assert second.stopping.mode == "min"
    assert second.schedule.cosine_floor is second.schedule.monitor is None
    assert second.loss.tversky == c.loss.tversky
    assert c.stage(1).loss == c.loss


def test_csa_moe():
    c = load_config("csa_moe")
    assert (c.task, c.data.batch_size, c.stopping.epochs, c.stopping.monitor) == ("views", 32, 30, "val/accuracy")
    assert (c.optimizer.lr, c.optimizer.weight_decay, c.optimizer.clip, c.optimizer.name) == (5e-5, 0.0, None, "adam")
    s = c.schedule
    assert (s.monitor, s.mode, s.factor, s.patience, s.min_lr) == ("val/loss", "min", 0.5, 3, 1e-6)


def test_hybrid_vssm():
    c = load_config("hybrid_vssm")
    assert (c.task, c.data.size, c.data.fractions, c.data.augment) == (
        "mammography",
        512,
        (0.8, 0.2, 0.0),
        "hybrid_vssm",
    )
    assert (c.optimizer.name, c.optimizer.lr, c.optimizer.weight_decay, c.optimizer.clip) == ("adamw", 1e-4, 0.05, 1.0)
    assert (c.loss.first, c.loss.second, c.loss.class_weights) == (0.5, 0.5, True)
    assert (c.schedule.factor, c.schedule.patience, c.stopping.epochs) == (0.5, 10, 100)


def test_changes_reach_the_depths():
    c = load_config("mbdi").change({"data": {"batch_size": 8, "fractions": [0.6, 0.2, 0.2]}, "optimizer": {"lr": 1}})
    assert (c.data.batch_size, c.data.fractions, c.optimizer.lr) == (8, (0.6, 0.2, 0.2), 1.0)
    assert c.data.size == 224


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dta": {}}, r"dta: there is no such setting \(did you mean 'data'\?\); there are: task, model"),
        ({"data": {"batchsize": 4}}, r"data.batchsize: there is no such setting \(did you mean 'batch_size'\?\)"),
        ({"data": 3}, "data: expected names and values, got 3"),
        ({"data": {"batch_size": "many"}}, "data.batch_size: expected an integer, got 'many'"),
        ({"data": {"batch_size": True}}, "data.batch_size: expected an integer, got True"),
        ({"data": {"batch_size": 0}}, "data.batch_size: expected at least 1, got 0"),
        ({"data": {"classes": "benign"}}, "data.classes: expected a list, got 'benign'"),
        ({"data": {"cache": 1}}, "data.cache: expected true or false, got 1"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr: expected a number, got 'fast'"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer.betas: expected two numbers from 0 to below 1, got \(0.9,\)"),
        ({"optimizer": {"clip": 0}}, "optimizer.clip: expected a number above 0, got 0"),
        ({"data": {"size": 0}}, "data.size: expected at least 1, got 0"),
        ({"data": {"augment": "x"}}, "data.augment: expected one of 'none', 'mbdi', .*, got 'x'"),
        ({"data": {"fractions": [0.5, 0.6]}}, "data.fractions: expected three numbers .* of sum 1"),
        ({"loss": {"tversky": "x"}}, "loss.tversky: expected one of 'mbdi', 'mbdi_code', 'abraham', got 'x'"),
        ({"loss": {"gates": -1}}, "loss.gates: expected at least 0, got -1"),
        ({"stopping": {"patience": -1}}, "stopping.patience: expected at least 0, got -1"),
        ({"precision": "8"}, "precision: expected one of '32-true', .*, got '8'"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr: expected a number above 0, got 0"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name: expected one of 'adam', 'adamw', got 'sgd'"),
        ({"model": {"options": [1]}}, r"model.options: expected names and values, got \[1\]"),
        ({"task": 7}, "task: expected text, got 7"),
        ({"task": "detect"}, "task: expected one of 'lesion', 'views', 'mammography', got 'detect'"),
        ({"stopping": {"mode": "up"}}, "stopping.mode: expected one of 'max', 'min', got 'up'"),
        ({"second_stage": {"los": {}}}, "second_stage.los: there is no such setting"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"seed": 10**14}, "seed: expected at most 4294967295, got 100000000000000"),
        ({"data": {"fractions": [0.7, None, 0.3]}}, r"data.fractions\[1\]: expected a number, got None"),
        ({"data": {"birads": ["x"]}}, r"data.birads\[0\]: expected an integer, got 'x'"),
        ({"data": {"birads": [0]}}, r"data.birads\[0\]: expected at least 1, got 0"),
        ({"data": {"birads": [5, 5]}}, r"data.birads: expected at least one, each once, got \(5, 5\)"),
        ({"data": {"classes": [0]}}, r"data.classes\[0\]: expected text, got 0"),
        ({"data": {"layout": "bus"}}, "data.layout: expected one of 'auto', 'busi', .*, got 'bus'"),
        ({"data": {3: 4}}, "data.3: there is no such setting; there are: layout"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: expected a finite number, got inf"),
        ({"optimizer": {"lr": True}}, "optimizer.lr: expected a number, got True"),
        ({"loss": {"ramp_top": -3}}, "loss.ramp_top: expected at least 0, got -3"),
        ({"model": {"options": {3: 4}}}, "model.options: expected text for a name, got 3"),
    ],
)
def test_wrong_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Config().change(changes)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(changes))
    with pytest.raises(ValueError, match=f"a.yaml: {message}"):
        load_config(tmp_path / "a.yaml")


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    text = "data: {classes: [0, 1, 2], sise: 3}\nsecond_stage: {}\noptimizer: {lr: .inf}\nseed: -1"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        load_config(tmp_path / "a.yaml")
    title, *lines = str(error.value).splitlines()
    assert title == f"{tmp_path / 'a.yaml'}: 6 settings are wrong:"
    assert [line.partition(": ")[0].strip() for line in lines] == [
        *(f"data.classes[{i}]" for i in range(3)),
        "data.sise",
        "optimizer.lr",
        "seed",
    ]
    with pytest.raises(RecipeError, match=r"(?s)2 settings.*second_stage.seed: expected at least.*second_stage.los:"):
        Config().change({"second_stage": {"los": {}, "seed": -1}})


def test_schema_is_what_recipes_fit():
    schema = recipe_schema()
    defs = schema["$defs"]
    assert set(schema["properties"]) == {"extends", *Config().to_dict()}
    assert schema["additionalProperties"] is defs["DataConfig"]["additionalProperties"] is False
    assert defs["DataConfig"]["properties"]["size"] == {
        "default": 224,
        "minimum": 1,
        "title": "Size",
        "type": "integer",
    }
    assert defs["OptimizerConfig"]["properties"]["name"]["enum"] == ["adam", "adamw"]
    assert defs["OptimizerConfig"]["properties"]["lr"]["exclusiveMinimum"] == 0
    assert "csa_moe" in defs["DataConfig"]["properties"]["augment"]["enum"]
    assert schema["properties"]["task"]["enum"] == ["lesion", "views", "mammography"]


def test_recipes_of_other_data_sets_extend_those_of_the_papers():
    mbdi, whu = load_config("mbdi"), load_config("mbdi_busi_whu")
    assert whu.model.options == mbdi.model.options | {"num_classes": 2}
    assert whu.data == replace(mbdi.data, classes=("benign", "malignant"), published_split=False)
    assert whu.optimizer == mbdi.optimizer
    for name, classes in (("btinet_ham10000", 7), ("btinet_brisc", 4)):
        config = load_config(name)
        assert config.model.options["num_classes"] == len(config.data.classes) == classes
        assert config.second_stage == load_config("btinet").second_stage
    assert load_config("hybrid_vssm_cmmd").model.options["tasks"] == ["label"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"a": "extends: b.yaml", "b": "extends: a.yaml"},
            "expected another configuration, got .*, which extends itself",
        ),
        ({"a": "extends: 5"}, "extends: expected the name of a configuration or a path, got 5"),
        ({"a": "extends: mbid"}, "extends: there is no configuration 'mbid'"),
        ({"a": "extends: b.yaml", "b": "seed: -1"}, r"extends: .*b\.yaml: seed: expected at least 0, got -1"),
        ({"a": "extends: mbdi\nsede: 1"}, "sede: there is no such setting"),
    ],
)
def test_wrong_extensions(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(RecipeError, match=words):
        load_config(tmp_path / "a.yaml")


def test_the_positive_class_is_one_of_the_classes():
    assert load_config("btinet").data.positive_index == 1
    for data in ({"positive": "malign"}, {"classes": None}):
        with pytest.raises(RecipeError, match=r"data\.positive: expected one of the classes \(.*\), got 'mali"):
            load_config("btinet").change({"data": data})


def test_numbers_that_yaml_takes_for_text(tmp_path):
    (tmp_path / "a.yaml").write_text("optimizer: {lr: 1e-4, eps: 1e-07}")
    assert (
        load_config(tmp_path / "a.yaml").optimizer
        == Config().change({"optimizer": {"lr": 1e-4, "eps": 1e-7}}).optimizer
    )


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="there is no configuration 'unet'; there are: btinet, btinet_brisc, "):
        load_config("unet")
    with pytest.raises(ValueError, match=r"none.yaml: cannot be read \(No such file or directory\)"):
        load_config(tmp_path / "none.yaml")
    for text, message in (("a: [", "is not valid YAML"), ("- 1", "configuration: expected names and values")):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"a.yaml: {message}"):
            load_config(tmp_path / "a.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == Config()
    with pytest.raises(ValueError, match="second_stage: this configuration has none"):
        Config().stage(2)


def test_a_change_of_the_second_stage_keeps_the_rest_of_it():
    demo = load_config("demo")
    stage = demo.adjust({"second_stage": {"stopping": {"epochs": 1}}}).second_stage
    assert stage == {**demo.second_stage, "stopping": {**demo.second_stage["stopping"], "epochs": 1}}
    assert demo.adjust({"second_stage": None}).second_stage is None
    assert demo.change({"second_stage": {"seed": 1}}).second_stage == {"seed": 1}


def test_another_network_keeps_the_options_that_it_has():
    config = load_config("demo").adjust({"model": {"name": "unet", "options": {"num_classes": 2}}})
    options = load_config("demo").model.options
    assert "clf_dim" in options
    assert "clf_dim" not in config.model.options
    assert config.model.options["encoder"] == options["encoder"]
    assert config.model.options["num_classes"] == 2
    with pytest.raises(ValueError, match="no model 'unett'"):
        load_config("demo").adjust({"model": {"name": "unett"}})
