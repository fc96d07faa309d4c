"""Shell completion, sourced into a real bash, and what `mtlkit --version` prints without loading torch."""

import os
import shutil
import subprocess
import sys

import pytest

import mtlkit
from mtlkit import info
from mtlkit.cli import main, parser
from mtlkit.cli.completion import SHELLS, completion

SOURCED = """\
source ./completion.sh
COMP_WORDS=({words}) COMP_CWORD={last}
COMP_LINE="${{COMP_WORDS[*]}}" COMP_POINT=${{#COMP_LINE}}
COMPREPLY=()
_shtab_mtlkit mtlkit "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def complete(tmp_path):
    """The completions that bash offers for the last word."""
    (tmp_path / "completion.sh").write_text(completion(parser(), "bash"))
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs.txt").touch()

    def propose(*words: str) -> set[str]:
        quoted = " ".join(f'"{word}"' for word in words)
        code = SOURCED.format(words=quoted, last=len(words) - 1)
        shell = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return {line.strip() for line in shell.stdout.splitlines()} - {""}

    return propose


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("tra",), {"train"}),
        (("data", "c"), {"check"}),
        (("data", "synthesize", "u"), {"ultrasound"}),
        (("train", "dem"), {"demo"}),
        (("train", "ru"), {"runs", "runs.txt"}),
        (("train", "--fol"), {"--fold", "--folds"}),
        (("evaluate", "--ora"), {"--oracle"}),
        (("--print-completion", "z"), {"zsh"}),
        (("evaluate", "ru"), {"runs"}),  # only the folder, not the file
        (("evaluate", "runs/demo", "--out", "ru"), {"runs"}),
        (("train", "demo", "--out", "runs/"), {"runs/demo"}),
        (("export", "runs/demo", "--out", "ru"), {"runs", "runs.txt"}),
    ],
)
def test_bash(complete, words, found):
    assert complete("mtlkit", *words) == found


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell(shell, capsys):
    with pytest.raises(SystemExit) as status:
        main(["--print-completion", shell])
    assert status.value.code == 0
    script = capsys.readouterr().out
    for command in ("train", "evaluate", "predict", "publish"):
        assert command in script
    if (program := shutil.which(shell)) is not None:
        assert subprocess.run([program, "-n"], input=script, text=True, check=False).returncode == 0


def test_without_shtab(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "needs shtab, which is not installed: pip install 'mtlkit[completion]'" in capsys.readouterr().err


def test_version(run_python):
    code = "import sys\ntry: __import__('mtlkit.cli').cli.main(['--version'])\nfinally: print('torch' in sys.modules)"
    before = os.times().children_user
    process = run_python("-c", code)
    assert os.times().children_user - before < 1  # seconds of processor time, which other load does not increase
    version, kernels, loaded = process.stdout.splitlines()
    assert version == f"mtlkit {mtlkit.__version__}"
    assert kernels.startswith("CPU kernels ")
    assert "; CUDA kernels " in kernels
    assert kernels.endswith(f"Python {info.platform.python_version()}")
    assert loaded == "False"


def test_version_of_what_is_not_built(monkeypatch):
    monkeypatch.setattr(info, "load_native", lambda: (None, "mtlkit._C is not built"))
    monkeypatch.setenv("MTLKIT_BACKEND", "torch")
    assert "\nCPU kernels off: mtlkit._C is not built; CUDA kernels off; MTLKIT_BACKEND=torch; torch " in info.summary()
