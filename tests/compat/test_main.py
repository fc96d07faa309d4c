"""`python -m mtlkit.compat` runs a script or module like Python itself, with the import names installed."""

import re
import sys
from importlib.util import find_spec

import pytest
import torch

from mtlkit import compat
from mtlkit.compat.__main__ import main

SCRIPT = """
import pickle, sys
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
import neighbour

class Result(str):
    pass

assert __name__ == "__main__" and sys.modules["__main__"].__dict__ is globals()
pickle.loads(pickle.dumps(Result("found as __main__.Result")))
print(sys.argv[1:], neighbour.name, __file__)
if sys.argv[1] == "raise":
    raise ValueError("theirs")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    yield
    compat.uninstall()
    sys.modules.pop("neighbour", None)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "__main__.py").write_text(SCRIPT)
    (tmp_path / "neighbour.py").write_text("name = 'neighbour'")
    return tmp_path


@pytest.mark.parametrize("file", ["train.py", "__main__.py"])
def test_a_script(folder, capsys, file):
    path = folder / file if file == "train.py" else folder
    with pytest.raises(SystemExit) as stopped:
        main([str(path), "3", "-m", "--help"])
    assert stopped.value.code == 3
    assert sys.argv == [str(path), "3", "-m", "--help"]
    assert sys.path[0] == str(folder)
    assert capsys.readouterr().out == f"['3', '-m', '--help'] neighbour {folder / file}\n"


@pytest.mark.parametrize("name", ["train", "package"])
def test_a_module(folder, capsys, monkeypatch, name):
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    with pytest.raises(SystemExit) as stopped:
        main(["-m", name, "0"])
    assert stopped.value.code == 0
    file = folder / "train.py" if name == "train" else package / "__main__.py"
    assert capsys.readouterr().out == f"['0'] neighbour {file}\n"
    for module in [module for module in sys.modules if module.partition(".")[0] == "package"]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py"], "can't open file '.*missing.py': No such file or directory"),
        (["-m"], "expected the name of a module after -m, got nothing"),
        (["-m", "a_module_that_nobody_has"], "no module named a_module_that_nobody_has"),
        (["-m", "a_module_that_nobody_has.part"], "no module a_module_that_nobody_has.part"),
        (["-m", "math"], "no module named math that can be run"),
        (["--epochs"], "expected a script, -m or --cpu, got the option --epochs"),
        ([], "usage: python -m mtlkit.compat"),
    ],
)
def test_what_cannot_be_run_is_said(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2

    assert re.search(message, capsys.readouterr().err)


def test_cuda_devices_are_the_cpu_if_asked(tmp_path, capsys):
    (tmp_path / "main.py").write_text("import torch\nprint(torch.zeros(2, device='cuda').cuda().to('cuda:0').device)")
    main(["--cpu", str(tmp_path / "main.py")])
    assert capsys.readouterr().out.startswith("cuda" if torch.cuda.is_available() else "cpu")


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "usage: python -m mtlkit.compat [--cpu] script.py" in capsys.readouterr().out
    assert find_spec("mamba_ssm") is None


def test_an_error_shows_what_python_shows(folder, run_python):
    process = run_python("-m", "mtlkit.compat", folder / "train.py", "raise")
    assert process.returncode == 1
    assert process.stderr == (
        f'Traceback (most recent call last):\n  File "{folder / "train.py"}", line 13, in <module>\n'
        '    raise ValueError("theirs")\nValueError: theirs\n'
    )
