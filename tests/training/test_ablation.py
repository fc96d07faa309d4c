"""Ablation tables: the papers' rows; rows that are trained, written or skipped; and rejected input."""

import csv
import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from mtlkit.cli import main
from mtlkit.data import DataError
from mtlkit.training import (
    ablate,
    count_steps,
    count_table,
    list_ablations,
    load_ablation,
    load_config,
)
from mtlkit.training.ablation import _check_figures, _module


@pytest.fixture(scope="module")
def file(tmp_path_factory, small):
    """A table of two rows, next to its recipe."""
    folder = tmp_path_factory.mktemp("table")
    small.change({"stopping": {"epochs": 1}}).save(folder / "small.yaml")
    rows = [
        {"name": "No interaction", "changes": {"model": {"options": {"tim": False, "upa": False}}}},
        {"name": "Gates | all", "changes": {}},
    ]
    table = {"name": "Two rows", "recipe": "small.yaml", "figures": ["iou", "accuracy"], "rows": rows}
    (folder / "table.yaml").write_text(yaml.safe_dump(table))
    return folder / "table.yaml"


@pytest.fixture(scope="module")
def done(file, ultrasound, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation") / "out"
    return out, ablate(file, ultrasound, out, repeats=2, progress=False)


# --- the tables of the papers -----------------------------------------------------------------------------------------


def options_of(name):
    """The options that the table varies, for each row, including those that a row leaves at their default."""
    rows = load_ablation(name).rows
    return [{"hmsf": True, "tim": True, "upa": True, **row.config.model.options} for row in rows]


@pytest.mark.parametrize("name", ["mbdi_table2_busi", "mbdi_table2_busi_whu"])
def test_mbdi_has_the_five_rows_of_the_paper(name):
    rows = [(o["hmsf"], o["tim"], o["upa"]) for o in options_of(name)]
    assert [sum(4 >> i for i, on in enumerate(row) if on) for row in rows] == [0b000, 0b100, 0b010, 0b011, 0b111]
    assert all(o["freeze_until"] == "blocks.1.1.bn2" for o in options_of(name))


@pytest.mark.parametrize("data", ["busi", "ham10000", "brisc"])
def test_btinet_goes_from_no_interaction_to_both_stages(data):
    rows = load_ablation(f"btinet_gates_{data}").rows
    options = [(o["tim"], o["upa"]) for o in options_of(f"btinet_gates_{data}")]
    assert options == [(False, False), (True, False), (True, True), (True, True)]
    assert [row.config.second_stage is None for row in rows] == [True, True, True, False]


def test_csa_moe_has_the_costs_of_the_paper():
    """All except those of DenseNet with experts, which is not a simple list of layers."""
    table = load_ablation("csa_moe_table4")
    costs, counted = count_table(table), 0
    for row in table.rows:
        found = costs[row.name]
        published = [row.published[name][0] for name in ("parameters", "flops")]
        if "DenseNet" in row.name and row.name != "DenseNet-121":
            assert abs(found.parameters / 1e6 - published[0]) > 0.1
            continue
        assert round(found.parameters / 1e6, 3) == published[0], row.name
        assert found.flops / 1e9 == pytest.approx(published[1], abs=1e-3), row.name
        counted += 1
    assert counted == 7
    assert costs["CSA-MoE-VGG"].parameters - costs["CSA-MoE-VGG"].computing == 3 * 123_642_856
    assert all(costs[name].computing == costs[name].parameters for name in ("VGG-16", "CSA-MoE-Net", "ResNet-18"))


@pytest.mark.parametrize(("number", "categories"), [(2, (1, 5)), (3, (1, 3, 5)), (4, (1, 2, 3, 4, 5))])
def test_hybrid_has_six_backbones_for_both_tasks_and_for_each(number, categories):
    table = load_ablation(f"hybrid_vssm_table{number}")
    tasks = Counter(tuple(row.config.model.options.get("tasks", ())) for row in table.rows)
    assert tasks == {(): 6, ("label",): 6, ("birads",): 6}
    assert {row.config.data.birads for row in table.rows} == {categories}
    assert {row.config.optimizer.lr for row in table.rows if "VSSM" in row.name} == {1e-5}
    assert sum(row.config.model.options.get("shared") is False for row in table.rows) == 6
    unpublished = [row.name for row in table.rows if not row.published]
    lacking = [f"VSSM view-specific{task}" for task in ("", ", label alone", ", BI-RADS alone")]
    assert unpublished == (lacking if number == 2 else [])


def test_hybrid_has_blocks_from_2_to_10():
    depths = [row.config.model.options["depths"] for row in load_ablation("hybrid_vssm_blocks").rows]
    assert [sum(depth) for depth in depths] == [*range(2, 11), *range(2, 11)]


@pytest.mark.parametrize("name", list_ablations())
def test_every_row_makes_its_network(name):
    table = load_ablation(name)
    assert table.figures
    assert table.images > 0 or name == "demo"
    assert len({row.folder for row in table.rows}) == len(table.rows)
    modules = [_module(row) for row in table.rows]
    _check_figures(table, modules)
    for row, module in zip(table.rows, modules, strict=True):
        assert set(row.published) <= {*module.figure_names(), "parameters", "flops"}, row.name
        steps = count_steps(row.config, table.images)
        assert steps > 0 or name == "demo"


def test_published_values_are_those_of_the_papers():
    mbdi, resnet = load_ablation("mbdi_table2_busi").rows[-1], load_ablation("csa_moe_table1").rows[0]
    assert mbdi.published["f1_weighted"] == (89.84, None)
    assert resnet.published["auc"] == (94.08, 1.7)


def test_changes_to_all_rows_come_before_those_of_a_row():
    changes = {"data": {"batch_size": 8}, "model": {"options": {"tim": True, "pretrained": False}}}
    name = "mbdi_table2_busi"
    rows, before = load_ablation(name, changes).rows, load_ablation(name).rows
    assert {row.config.data.batch_size for row in rows} == {8}
    assert [row.config.model.options["tim"] for row in rows] == [False, False, True, True, True]
    assert rows[0].config.model.options == before[0].config.model.options | {"pretrained": False}


@pytest.mark.parametrize(
    "name",
    [name if name == "csa_moe_table2" else pytest.param(name, marks=pytest.mark.slow) for name in list_ablations()],
)
def test_every_table_can_be_rehearsed(name, tmp_path):
    found = ablate(name, "phantoms", tmp_path / "out", rehearse=True, progress=False)
    table = load_ablation(name)
    assert list(found) == [row.name for row in table.rows]
    for row in table.rows:
        config = load_config(tmp_path / "out" / row.folder / "seed-42" / "config.yaml")
        assert (config.stopping.epochs, config.data.size) == (1, 64)
        assert len((tmp_path / "out" / row.folder / "seed-42/stage1/metrics.csv").read_text().splitlines()) == 2


# --- training ---------------------------------------------------------------------------------------------------------


def test_what_is_written(done):
    out, found = done
    assert list(found) == ["No interaction", "Gates | all"]
    runs = [
        [json.loads((out / row / f"seed-{seed}/result.json").read_text()) for seed in (42, 43)]
        for row in ("no-interaction", "gates-all")
    ]
    saved = json.loads((out / "table.json").read_text())
    assert (saved["name"], saved["seeds"]) == ("Two rows", [42, 43])
    for row, pair in zip(saved["rows"], runs, strict=True):
        a, b = (run["test/iou"] for run in pair)
        assert row["figures"]["test/iou"]["mean"] == pytest.approx((a + b) / 2)
        assert row["figures"]["test/iou"]["sd"] == pytest.approx(abs(a - b) / math.sqrt(2))
        assert found[row["name"]]["test/iou"]["mean"] == pytest.approx((a + b) / 2)
    assert saved["rows"][0]["parameters"] < saved["rows"][1]["parameters"]
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == list(found)
    assert float(rows[1]["val/loss mean"]) == pytest.approx(found["Gates | all"]["val/loss"]["mean"])

    title, _, words, _, *lines = (out / "table.md").read_text().splitlines()
    assert title == "# Two rows"
    assert "mean and standard deviation over 2 seeds" in words
    assert lines[0] == "|  | iou | accuracy |"
    means = [pair["test/iou"]["mean"] for pair in found.values()]
    for line, pair, name in zip(lines[2:], found.values(), ("No interaction", "Gates \\| all"), strict=True):
        cell = f"{pair['test/iou']['mean']:.4f} ± {pair['test/iou']['sd']:.4f}"
        cell = f"**{cell}**" if pair["test/iou"]["mean"] == max(means) else cell
        assert line.startswith(f"| {name} | {cell} |")


def test_the_demo_has_all_its_rows(ultrasound, small, tmp_path):
    """Each row is trained to the end, evaluated and counted; only the last has gates."""
    stage = {"loss": {"gates": 1.0}, "stopping": {"epochs": 1, "monitor": "val/loss", "mode": "min"}}
    table = load_ablation("demo", small.change({"stopping": {"epochs": 1}, "second_stage": stage}).to_dict())
    found = ablate(table, ultrasound, tmp_path / "out", progress=False)
    assert list(found) == ["no interaction", "fixed interaction", "adaptive gates"]
    for name, figures in found.items():
        for figure in table.figures:
            assert 0 <= figures[f"test/{figure}"]["mean"] <= 1, (name, figure)
        assert any("gate_" in figure for figure in figures) == (name == "adaptive gates")
        folder = tmp_path / "out" / name.replace(" ", "-") / "seed-42"
        assert (folder / "stage2").is_dir() == (name == "adaptive gates")
    losses = [figures["val/loss"]["mean"] for figures in found.values()]
    assert len(set(losses)) == 3
    counts = [row["parameters"] for row in json.loads((tmp_path / "out/table.json").read_text())["rows"]]
    assert counts[0] < counts[1] < counts[2]


def test_resuming_leaves_what_has_ended_and_trains_what_is_new(done, file, ultrasound, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    shutil.rmtree(out / "gates-all/seed-43")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")}
    again = ablate(file, ultrasound, out, repeats=2, resume=True, progress=False)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")}.items()
    for name, figures in done[1].items():
        assert again[name]["test/iou"] == pytest.approx(figures["test/iou"])


def test_a_table_that_is_interrupted_has_the_rows_so_far(file, ultrasound, tmp_path):
    told = []

    def stop(number, row):
        told.append((number, row.name))
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(file, ultrasound, tmp_path / "out", progress=False, on_row=stop)
    assert told == [(0, "No interaction"), (1, "Gates | all")]
    (row,) = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    assert row["figures"]["test/iou"]["sd"] is None
    assert "one seed" in (tmp_path / "out/table.md").read_text()


def test_command_lists_tables_and_costs(capsys):
    assert main(["ablate", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in list_ablations())
    assert main(["ablate", "demo", "--costs"]) == 0
    text = capsys.readouterr().out
    assert f"{count_table(load_ablation('demo'))['adaptive gates'].parameters / 1e6:.3f}" in text


def test_command_measures_a_step(capsys, file):
    assert main(["ablate", str(file), "--measure"]) == 0
    text = capsys.readouterr().out
    assert "all rows, one seed" in text
    assert "hours at most on" in text


def test_command(done, file, ultrasound, capsys):
    arguments = ["ablate", str(file), "--data", str(ultrasound), "--out", str(done[0]), "--repeats", "2"]
    assert main([*arguments, "--resume"]) == 0
    text = capsys.readouterr().out
    assert "1 of 2: No interaction" in text
    assert "Gates | all" in text
    assert f"{done[1]['Gates | all']['test/iou']['mean']:.4f} ±" in text
    assert "**" not in text
    assert main(arguments) == 2
    assert "there is an ablation already; --resume continues it" in capsys.readouterr().err


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rows: []", "rows: expected at least one, got none"),
        ("rows: 3", "rows: expected a list, got 3"),
        ("row: []", "expected the names name, recipe, figures, rows, paper, data, images, unit, reference, got 'row'"),
        ("[1]", "expected the names name, recipe, figures, rows, paper, data, images, unit, reference, got [1]"),
        ("data: [busy]\nrows: [{name: x}]", "data: expected some of busi, busi_whu, ham10000"),
        ("data: busi\nrows: []", "data: expected a list of names, got 'busi'"),
        ("images: many\nrows: []", "images: expected an integer of at least 0, got 'many'"),
        ("unit: permille\nrows: [{name: x}]", "unit: expected one of percent, fraction, got 'permille'"),
        ("reference: y\nrows: [{name: x}]", "reference: expected one of the rows x, got 'y'"),
        ("rows: [{name: x, published: 3}]", "row 'x': published: expected metrics and their values, got 3"),
        ("rows: [{name: x, published: {iou: [1, 2, 3]}}]", "row 'x': published.iou: expected a number, or a mean and"),
        ("rows: [{name: x, published: {iou: high}}]", "row 'x': published.iou: expected a number, or a mean and"),
        ("figures: iou\nrows: []", "figures: expected a list of names, got 'iou'"),
        ("rows: [{nam: x}]", "row 1: expected the names name, changes, published, remark, got 'nam'"),
        ("rows: [{name: '+'}]", "rows: expected names with letters or digits, got '+'"),
        ("rows: [{name: a b}, {name: A-B}]", "rows: expected different names, got 'a b' and 'A-B'"),
        ("rows: [{name: x, changes: {data: {sise: 3}}}]", "row 'x': data.sise: there is no such setting (did you mean"),
        ("recipe: nonsense", "there is no configuration 'nonsense'"),
        ("rows: [", "is not valid YAML"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, words):
    path = tmp_path / "table.yaml"
    path.write_text(text if "recipe" in text or text.startswith("[") else f"recipe: demo\n{text}")
    with pytest.raises(ValueError, match=r"table\.yaml: ") as error:
        load_ablation(path)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"figures": ["iou", "acuracy"]},
            r"figures: there is no metric 'acuracy' \(did you mean 'accuracy'\?\); there are",
        ),
        ({"changes": {"stopping": {"monitor": "val/los"}}}, "row 'b': stopping.monitor: there is no metric 'val/los'"),
        ({"changes": {"model": {"options": {"upa": False}}}}, "row 'b': second_stage: expected none"),
    ],
)
def test_what_no_row_has_costs_no_training(tmp_path, ultrasound, content, words):
    path = tmp_path / "table.yaml"
    rows = [{"name": "a"}, {"name": "b", "changes": content.get("changes", {})}]
    path.write_text(yaml.safe_dump({"recipe": "demo", "figures": content.get("figures", []), "rows": rows}))
    with pytest.raises(ValueError, match=words):
        ablate(path, ultrasound, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_of_another_data_set(tmp_path, ultrasound):
    words = r"busi: 'CSA-MoE.*' is a table for brisc, but this folder has the layout busi"
    table = replace(load_ablation("csa_moe_table2"), data=("brisc",))
    with pytest.raises(DataError, match=words):
        ablate(table, ultrasound, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_option_in_the_last_row_costs_no_training(tmp_path, ultrasound):
    path = tmp_path / "table.yaml"
    rows = [{"name": "a"}, {"name": "b", "changes": {"model": {"options": {"encodr": "resnet18"}}}}]
    path.write_text(yaml.safe_dump({"recipe": "demo", "rows": rows}))
    with pytest.raises(ValueError, match="row 'b': encodr: btinet has no such option"):
        ablate(path, ultrasound, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_may_not_be_used(tmp_path, file, ultrasound):
    (tmp_path / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(DataError, match="no list says that mtlkit wrote what is in it"):
            ablate(file, ultrasound, tmp_path, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "there is no table of ablations 'nonsense'; there are: btinet_gates_brisc, "),
        (["demo", "--repeats", "0"], "repeats: expected at least 1, got 0"),
        (["demo", "--set", "data.sise=3"], "data.sise: there is no such setting"),
        (["demo"], "nowhere: there is no such folder"),
        (["demo", "--data", "phantoms"], "data: expected a folder, got 'phantoms', which only a rehearsal draws"),
        (["demo", "--rehearse", "--resume"], "rehearse: expected False with resume"),
    ],
)
def test_command_with_bad_input(tmp_path, capsys, arguments, words):
    name, *rest = arguments
    assert main(["ablate", name, "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"), *rest]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1
