"""The optional packages that errors of commands name match those in pyproject.toml."""

import re
import sys

import pytest

from mtlkit._extras import EXTRAS, READING, TIMING, check_installed, missing_words

tomllib = pytest.importorskip("tomllib")


@pytest.mark.parametrize("extra", list(EXTRAS))
def test_packages_are_those_of_the_project(root, extra):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.split(r"[>=<\[]", line)[0] for line in project[extra] if not line.startswith("mtlkit[")}
    if "mtlkit[models]" in project[extra] and extra == "train":
        names |= set(EXTRAS["models"].values())
    assert set(EXTRAS[extra].values()) == names
    assert {*READING, *TIMING} <= set(EXTRAS["train"])


def test_all_that_is_missing_is_named_by_its_package(monkeypatch):
    check_installed("`mtlkit train`")
    for name in ("sklearn", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)
    words = r"^`mtlkit train` needs scikit-learn and pillow, which are not installed: pip install 'mtlkit\[train\]'$"
    with pytest.raises(ImportError, match=words):
        check_installed("`mtlkit train`")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn, pillow and onnx, .*'mtlkit\[train,deploy\]'$"):
        check_installed("`mtlkit export`", "train,deploy")
    check_installed("`mtlkit bench`", "train", TIMING)
    with pytest.raises(ImportError, match="needs pillow, which is not installed"):
        check_installed("`mtlkit data check`", "train", READING)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("sklearn.model_selection", "needs scikit-learn, which is not installed: pip install 'mtlkit[train]'"),
        ("lightning", "needs lightning, which is not installed: pip install 'mtlkit[train]'"),
        ("monai.networks", "needs monai.networks, which is not installed: pip install 'mtlkit[baselines]'"),
        ("gdcm", "needs gdcm, which is not installed"),
    ],
)
def test_words(module, words):
    assert missing_words(module) == words
