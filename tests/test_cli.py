"""The command line: printed and written output, exit status, and one sentence for each error."""

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mtlkit
from mtlkit.cli import demo, main, parser
from mtlkit.data import open_dataset


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "busi"
    assert main(["data", "synthesize", "ultrasound", str(folder), "--cases", "6", "--size", "64"]) == 0
    return folder


@pytest.fixture
def failing(capsys):
    """Runs a command that must fail with status 2; returns its one sentence."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("mtlkit: ")
        assert captured.err.count("\n") == 1, captured.err
        return captured.err.removeprefix("mtlkit: ").strip()

    return run


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["info", "data", "exit status"]),
        (["data", "--help"], ["check", "synthesize"]),
        (["data", "check", "--help"], ["layouts:", "ham10000", "examples:", "--birads", "--json", "--force"]),
        (["data", "synthesize", "--help"], ["ultrasound", "mammography", "examples:", "--seed", "--cases"]),
        (["ablate", "--help"], ["examples:", "rows:", "csa_moe_table4", "--repeats", "--resume", "exit status"]),
        (["compare", "--help"], ["examples:", "Wilcoxon", "--tsne", "--max-pixels", "--force", "exit status"]),
        (["predict", "--help"], ["examples:", "DICOM", "L_CC", "--masks", "--skip-bad", "area_mm2", "exit status"]),
        (["publish", "--help"], ["examples:", "README.md", "--evaluation", "--hub", "--licence", "exit status"]),
        (["bench", "--help"], ["examples:", "medmamba_t", "--quick", "--json", "exit status"]),
    ],
)
def test_help_teaches(capsys, arguments, words):
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dada"], "invalid choice: 'dada'; did you mean 'data'?"),
        (["help", "trian"], "did you mean 'train'?"),
        (["xyz"], "invalid choice: 'xyz' (choose from"),
        (["data"], "COMMAND"),
        (["data", "check"], "FOLDER"),
        (["data", "check", "x", "--birads", "1,x"], "expected numbers with commas between them, got '1,x'"),
        (["data", "synthesize", "ct", "x"], "invalid choice: 'ct'"),
        (["data", "synthesize", "ultrasound", "x", "--cases", "many"], "invalid int value: 'many'"),
    ],
)
def test_wrong_usage(capsys, arguments, words):
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 2
    assert words in capsys.readouterr().err


def test_the_command_alone_shows_where_to_begin(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    commands = [line.split()[1:] for line in shown.splitlines() if line.startswith("  mtlkit ")]
    for command in commands[:4]:
        assert parser().parse_args(command).run
    assert f"mtlkit {mtlkit.__version__}" in shown


def test_help_is_a_command_too(capsys):
    texts = []
    for arguments in (["help", "data", "check"], ["data", "check", "--help"], ["help"], ["--help"]):
        with pytest.raises(SystemExit) as exit_status:
            main(arguments)
        assert exit_status.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert texts[0] != texts[2]


def test_the_commands_of_the_demo_are_understood():
    """Every command that the demo runs, with its options and files."""
    parsed = [parser().parse_args(line) for line in demo.lines(Path("there"), force=True)]
    data, check, train, evaluate, predict = parsed
    assert data.folder == check.folder == train.data == evaluate.data
    assert train.out == evaluate.run_folder == predict.run_folder
    assert len(predict.inputs) == 2
    assert all(Path(file).is_file() for file in predict.inputs)
    folders = {options.out for options in (train, evaluate, predict)} | {data.folder}
    assert len(folders) == 4
    assert {folder.parts[0] for folder in folders} == {"there"}
    assert all(options.force for options in parsed if options is not check)


def test_the_demo_ends_at_the_first_command_that_fails(monkeypatch, tmp_path, capsys):
    phantoms, absent = str(tmp_path / "busi"), str(tmp_path / "absent")
    drawing = ["data", "synthesize", "ultrasound", phantoms, "--cases", "6", "--size", "64"]
    monkeypatch.setattr(demo, "lines", lambda *_, **__: [drawing, ["data", "check", absent], ["info"]])
    assert main(["demo"]) == 2
    captured = capsys.readouterr()
    shown = [line for line in captured.out.splitlines() if line.startswith("$ ")]
    assert shown == [f"$ mtlkit {shlex.join(drawing)}", f"$ mtlkit data check {absent}"]
    assert absent in captured.err


@pytest.mark.slow
def test_the_demo_ends_with_a_report(tmp_path, capfd):
    there = str(tmp_path / "demo")
    assert main(["demo", "--quick", "--out", there]) == 0
    assert f"{there}/report/report.html" in capfd.readouterr().out
    assert (tmp_path / "demo" / "report" / "report.html").is_file()
    assert len(list((tmp_path / "demo" / "real").rglob("*.png"))) >= 31
    assert main(["demo", "--quick", "--out", there]) == 2
    assert "--force" in capfd.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith(f"mtlkit {mtlkit.__version__}\nCPU kernels ")


# --- synthesize and check ---------------------------------------------------------------------------------------------


def test_synthesize_says_what_it_wrote(tmp_path, capsys):
    assert main(["data", "synthesize", "mammography", str(tmp_path / "mg"), "--cases", "5", "--size", "64"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mg'}: 5 cases of mammography phantoms\n"
    assert len(open_dataset(tmp_path / "mg")) == 5
    odd = tmp_path / "[/red]us"
    assert main(["data", "synthesize", "ultrasound", str(odd), "--cases", "3", "--size", "64"]) == 0
    assert capsys.readouterr().out == f"{odd}: 3 cases of ultrasound phantoms\n"
    assert main(["data", "check", str(tmp_path / "mg"), "--birads", "1,5"]) == 0
    assert "patients in" in capsys.readouterr().out


def test_check_of_sound_data(phantoms, capsys):
    assert main(["data", "check", str(phantoms)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{phantoms}: layout busi, 6 images in 6 groups"
    assert [line.split() for line in lines[1:4]] == [["3", "benign"], ["2", "malignant"], ["1", "normal"]]
    assert lines[-1] == "0 errors, 0 warnings, 0 notes"


@pytest.fixture
def damaged(tmp_path) -> Path:
    folder = tmp_path / "damaged"
    assert main(["data", "synthesize", "ultrasound", str(folder), "--cases", "9", "--size", "64"]) == 0
    for i in range(1, 6):
        (folder / f"benign/benign ({i})_mask.png").unlink()
    (folder / "malignant/malignant (1).png").write_bytes(b"broken")
    return folder


def test_check_of_damaged_data(damaged, capsys, tmp_path):
    capsys.readouterr()
    assert main(["data", "check", str(damaged), "--json", str(tmp_path / "report.json")]) == 1
    text = capsys.readouterr().out
    assert "error: missing mask (5)" in text
    assert "... and 2 more: --all lists them" in text
    assert f"  {damaged}/malignant/malignant (1).png: cannot be read as an image" in text
    # all benign images are removed because they have no mask
    assert text.endswith("7 errors, 0 warnings, 0 notes\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["layout"], report["ok"], report["records"]) == ("busi", False, 3)
    assert [finding["kind"] for finding in report["findings"]].count("missing mask") == 5
    assert report["classes"] == {"benign": 0, "malignant": 1, "normal": 2}

    assert main(["data", "check", str(damaged), "--all"]) == 1
    assert capsys.readouterr().out.count("there is no mask of this image") == 5


def test_choosing_classes(phantoms, capsys):
    assert main(["data", "check", str(phantoms), "--classes", "malignant,benign"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [["2", "malignant"], ["3", "benign"]]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_wrong_paths(failing, tmp_path, phantoms):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert failing("data", "check", tmp_path / "none") == f"{tmp_path}/none: there is no such folder"
    assert failing("data", "check", tmp_path / "empty") == f"{tmp_path}/empty: the folder is empty"
    assert failing("data", "check", tmp_path / "file") == f"{tmp_path}/file: expected a folder, found a file"
    assert "has none of the layouts" in failing("data", "check", phantoms / "benign", "--layout", "auto")
    assert "there is no HAM10000_metadata.csv" in failing("data", "check", phantoms, "--layout", "ham10000")


def test_bad_options(failing, tmp_path, phantoms):
    assert "layout: expected 'auto' or one of" in failing("data", "check", phantoms, "--layout", "x")
    assert "expected classes among benign, malignant, normal" in failing("data", "check", phantoms, "--classes", "x")
    assert "birads: the layout busi has no such option" in failing("data", "check", phantoms, "--birads", "1,5")
    out = tmp_path / "out"
    assert "cases: expected an integer" in failing("data", "synthesize", "ultrasound", out, "--cases", 1)
    assert "size: expected at most 4096" in failing("data", "synthesize", "ultrasound", out, "--size", 10**6)
    assert not out.exists()


def test_bad_options_of_publish(failing, tmp_path, monkeypatch):
    assert failing("publish", "run") == "--out, --hub: expected at least one of them"
    assert "--private: expected with --hub" in failing("publish", "run", "--out", tmp_path / "card", "--private")
    assert "no/run: there is no such folder" in failing("publish", "no/run", "--out", tmp_path / "card")

    def unreachable(*_, **__):
        kind = type("ConnectError", (Exception,), {"__module__": "httpx"})  # huggingface_hub has one of several clients
        raise kind("Name or service not known")

    monkeypatch.setattr("mtlkit.evaluation.publish", unreachable)
    assert failing("publish", "run", "--hub", "a/b") == "--hub a/b: Name or service not known"


def test_nothing_is_overwritten_without_force(failing, tmp_path, phantoms):
    before = sorted(phantoms.rglob("*"))
    assert "exists already; --force replaces" in failing("data", "synthesize", "ultrasound", phantoms)
    assert sorted(phantoms.rglob("*")) == before
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("x")
    text = failing("data", "synthesize", "ultrasound", thesis, "--force")
    assert "no list says that mtlkit wrote what is in it" in text
    assert "--force" not in text
    assert "the file exists already" in failing("data", "check", phantoms, "--json", thesis / "thesis.tex")
    assert (thesis / "thesis.tex").read_text() == "x"


def test_full_disk(failing, tmp_path, monkeypatch):
    from PIL import Image

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    out = tmp_path / "out"
    text = failing("data", "synthesize", "ultrasound", out, "--cases", 3, "--size", 64)
    assert text.startswith(f"{out}/")
    assert text.endswith(".png: cannot be written (No space left on device)")
    assert not list(tmp_path.iterdir())


def test_debug_shows_where(capsys, tmp_path):
    assert main(["--debug", "data", "check", str(tmp_path / "none")]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interrupted(capsys, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtlkit.data.validate.check_dataset", stop)
    assert main(["data", "check", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "mtlkit: interrupted\n"


def test_missing_extra_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["data", "check", str(tmp_path)]) == 2
    words = "`mtlkit data check` needs rich.console, which is not installed: pip install 'mtlkit[train]'"
    assert capsys.readouterr().err == f"mtlkit: {words}\n"


def test_as_a_process(phantoms, tmp_path):
    command = [Path(sys.executable).with_name("mtlkit"), "data", "check"]
    process = subprocess.run([*command, phantoms], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    process = subprocess.run([*command, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == f"mtlkit: {tmp_path}/none: there is no such folder\n"


def test_checking_and_drawing_load_no_torch(run_python, tmp_path):
    script = f"""
import sys
from mtlkit.cli import demo, main, parser
main(["data", "synthesize", "ultrasound", {str(tmp_path / "us")!r}, "--cases", "3", "--size", "64"])
main(["data", "check", {str(tmp_path / "us")!r}])
print("torch" in sys.modules)
"""
    process = run_python("-c", script)
    assert process.stdout.endswith("False\n"), process.stderr


def test_export(monkeypatch, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    from mtlkit import deploy, training

    config = training.load_config("demo").change({"data": {"size": 32}})
    model = mtlkit.models.create_model("vmamba_t_v0", num_classes=3, depths=(1,), dims=(8,)).eval()
    saved = training.SavedRun(tmp_path, config, model, ("a", "b", "c"), (), None, {}, tmp_path, {})
    monkeypatch.setattr(training, "load_run", lambda folder: saved)
    monkeypatch.setattr(training.SavedRun, "tasks", {"class": ("a", "b", "c")})
    assert main(["export", "run", "--out", str(tmp_path / "net.onnx")]) == 0
    out = capsys.readouterr().out
    assert "takes images (batch, 3, height, width)" in out
    assert deploy.library_path() in out.replace("\n", "")
    facts = deploy.facts_of(deploy.open_session(tmp_path / "net.onnx"))
    assert facts["classes"] == {"class": ["a", "b", "c"]}
    assert (facts["size"], len(facts["mean"]), facts["recipe"]["task"]) == (32, 3, "lesion")
    assert main(["export", "run", "--out", str(tmp_path / "net.onnx")]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert main(["export", "run", "--out", str(tmp_path / "plain.onnx"), "--plain", "--licence", "MIT"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "plain.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    assert "licence" not in facts
    assert deploy.facts_of(session)["licence"] == "MIT"


def test_export_in_8_bits(monkeypatch, tmp_path, capsys, phantoms):
    """Calibrated with half of a data set and evaluated on the other; a loss of more than a point is reported."""
    pytest.importorskip("onnxruntime")
    from mtlkit import deploy, training
    from mtlkit.evaluation import exported

    config = training.load_config("demo").change({"data": {"size": 32}})
    model = mtlkit.models.create_model("unet", encoder="resnet18", dim=4, num_classes=3).eval()
    classes = ("benign", "malignant", "normal")
    saved = training.SavedRun(tmp_path, config, model, classes, (), None, {}, phantoms, {})
    monkeypatch.setattr(training, "load_run", lambda folder: saved)
    path = tmp_path / "net.onnx"
    assert main(["export", "run", "--out", str(path), "--int8", "--calibrate", str(phantoms)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "calibrated with" in out
    assert "iou" in out
    assert "accuracy" in out
    facts = deploy.facts_of(deploy.open_session(path))
    assert facts["int8"]["images"] > 0
    found = deploy.Exported(path, {}, {}, 9, 0.02, deploy.Calibration(3, "5d"))
    monkeypatch.setattr(deploy, "export", lambda *_, **__: found)
    figures = iter(({"iou": 0.8, "auc": 0.9}, {"iou": 0.7, "auc": 0.895}))
    monkeypatch.setattr(exported, "key_figures", lambda *_, **__: next(figures))
    assert main(["export", "run", "--out", str(path), "--int8", "--force"]) == 0
    assert (
        "8 bits lower iou by 10.0 points: decide whether that is acceptable before you use the file\n"
        in capsys.readouterr().out
    )
    assert main(["export", "run", "--out", str(path), "--calibrate", str(phantoms), "--force"]) == 2
    assert "--calibrate: expected with --int8" in capsys.readouterr().err
