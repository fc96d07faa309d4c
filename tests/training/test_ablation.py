"""Tables of ablations: the papers' rows, what is trained, written and left alone, and what is refused."""

import csv
import json
import math
import shutil

import pytest
import yaml

from mtlkit.cli import main
from mtlkit.data import DataError
from mtlkit.training import Ablation, AblationRow, ablate, load_ablation, load_config
from mtlkit.training.ablation import _parameters, show


@pytest.fixture(scope="module")
def file(tmp_path_factory, small):
    """A table of two rows, beside the recipe that it names."""
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
    """The options of each row that the table is about, whether a row names them or leaves them as they are."""
    rows = load_ablation(name).rows
    return [{"hmsf": True, "tim": True, "upa": True, **row.config.model.options} for row in rows]


def test_mbdi_has_the_five_rows_of_the_paper():
    rows = [(o["hmsf"], o["tim"], o["upa"]) for o in options_of("mbdi")]
    assert [sum(4 >> i for i, on in enumerate(row) if on) for row in rows] == [0b000, 0b100, 0b010, 0b011, 0b111]
    assert all(o["freeze_until"] == "blocks.1.1.bn2" for o in options_of("mbdi"))


def test_btinet_goes_from_no_interaction_to_both_stages():
    rows = [(o["tim"], o["upa"]) for o in options_of("btinet")]
    assert rows == [(False, False), (True, False), (True, True), (True, True)]
    assert [row.config.second_stage is None for row in load_ablation("btinet").rows] == [True, True, True, False]


def test_csa_moe_has_the_counts_of_the_paper():
    """ResNet-18 with two outputs, three experts, and cross-stage attention of 862,272."""
    counts = [_parameters(row) for row in load_ablation("csa_moe").rows]
    assert (counts[0], counts[1], counts[-1] - counts[1]) == (11_177_538, 33_629_253, 862_272)


def test_hybrid_has_backbones_sharing_and_tasks():
    table = load_ablation("hybrid_vssm")
    assert {row.config.model.options.get("backbone", "hybrid") for row in table.rows} == {
        "resnet18",
        "resnet50",
        "vssm",
        "hybrid",
    }
    assert [row.config.optimizer.lr for row in table.rows if row.name == "VSSM"] == [1e-5]
    assert sum(row.config.model.options.get("shared") is False for row in table.rows) == 1
    assert {tuple(row.config.model.options.get("tasks", ())) for row in table.rows} == {(), ("label",), ("birads",)}


@pytest.mark.parametrize("name", ["mbdi", "btinet", "csa_moe", "hybrid_vssm", "demo"])
def test_every_row_makes_its_network(name):
    table = load_ablation(name)
    assert table.figures
    assert len({row.folder for row in table.rows}) == len(table.rows)
    assert all(_parameters(row) > 0 for row in table.rows)
    assert any(row.config == load_config(name) for row in table.rows), "no row is the recipe as it is"


def test_changes_to_all_rows_come_before_those_of_a_row():
    changes = {"data": {"batch_size": 8}, "model": {"options": {"tim": True, "pretrained": False}}}
    rows, before = load_ablation("mbdi", changes).rows, load_ablation("mbdi").rows
    assert {row.config.data.batch_size for row in rows} == {8}
    assert [row.config.model.options["tim"] for row in rows] == [False, False, True, True, True]
    assert rows[0].config.model.options == before[0].config.model.options | {"pretrained": False}


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
    """Each is trained to the end, judged and counted; only the last has gates."""
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


def test_command(done, file, ultrasound, capsys):
    arguments = ["ablate", str(file), "--data", str(ultrasound), "--out", str(done[0]), "--repeats", "2"]
    assert main([*arguments, "--resume"]) == 0
    text = capsys.readouterr().out
    assert "1 of 2: No interaction" in text
    assert "Gates | all" in text
    assert f"{done[1]['Gates | all']['test/iou']['mean']:.4f} ±" in text
    assert "**" not in text
    assert main(arguments) == 2
    assert "there is an ablation already; --resume goes on with it" in capsys.readouterr().err


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rows: []", "rows: expected at least one, got none"),
        ("rows: 3", "rows: expected a list, got 3"),
        ("row: []", "expected the names name, recipe, figures, rows, got 'row'"),
        ("[1]", "expected the names name, recipe, figures, rows, got [1]"),
        ("figures: iou\nrows: []", "figures: expected a list of names, got 'iou'"),
        ("rows: [{nam: x}]", "row 1: expected the names name, changes, got 'nam'"),
        ("rows: [{name: '+'}]", "rows: expected names with letters or digits, got '+'"),
        ("rows: [{name: a b}, {name: A-B}]", "rows: expected names of their own, got 'a b' and 'A-B'"),
        ("rows: [{name: x, changes: {data: {sise: 3}}}]", "row 'x': data.sise: there is no such setting (did you mean"),
        ("recipe: nonsense", "there is no configuration 'nonsense'"),
        ("rows: [", "is no YAML"),
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
            r"figures: there is no figure 'acuracy' \(did you mean 'accuracy'\?\); there are",
        ),
        ({"changes": {"stopping": {"monitor": "val/los"}}}, "row 'b': stopping.monitor: there is no figure 'val/los'"),
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


def test_the_best_of_a_column_is_the_lowest_loss_and_the_highest_score():
    rows = tuple(AblationRow(name, load_config("demo")) for name in ("a", "b"))
    figures = ("loss", "classification", "calibration_error", "iou", "images", "gate_seg_level1")
    found = {
        name: {f"test/{figure}": {"mean": value, "sd": math.nan} for figure in figures}
        for name, value in (("a", 0.25), ("b", 0.5))
    }
    headings, cells = show(Ablation("x", rows, figures), found)
    assert headings == ["", *figures]
    assert cells == [
        ["a", *["**0.2500**"] * 3, "0.2500", "0", "0.2500"],
        ["b", *["0.5000"] * 3, "**0.5000**", "0", "0.5000"],
    ]


def test_figures_that_only_later_rows_have_are_shown():
    rows = tuple(AblationRow(name, load_config("demo")) for name in ("a", "b"))
    pair = {"mean": 0.5, "sd": math.nan}
    found = {"a": {"val/label_auc": pair}, "b": {"val/label_auc": pair, "val/birads_auc": pair}}
    assert show(Ablation("x", rows, ()), found)[0] == ["", "label_auc", "birads_auc"]


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
        (["nonsense"], "there is no table of ablations 'nonsense'; there are: btinet, csa_moe, demo"),
        (["demo", "--repeats", "0"], "repeats: expected at least 1, got 0"),
        (["demo", "--set", "data.sise=3"], "data.sise: there is no such setting"),
        (["demo"], "nowhere: there is no such folder"),
    ],
)
def test_command_with_bad_input(tmp_path, capsys, arguments, words):
    name, *rest = arguments
    assert main(["ablate", name, "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"), *rest]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1
