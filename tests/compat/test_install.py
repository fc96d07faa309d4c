"""Which import names resolve to mtlkit's functions, when, and what other imports find."""

import importlib
import sys
import types
import warnings
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from packaging.version import Version

import mtlkit
from mtlkit import compat
from mtlkit.compat import _install

INTERFACE = "mamba_ssm.ops.selective_scan_interface"
EXTENSIONS = ("selective_scan_cuda", "selective_scan_cuda_core", "selective_scan_cuda_oflex")


@pytest.fixture(autouse=True)
def _nothing_stays():
    before, finders = dict(sys.modules), list(sys.meta_path)
    yield
    compat.uninstall()
    served = {name for name in sys.modules if name.partition(".")[0] in _install.PACKAGES}
    for name in served - set(before):  # imported by a test itself
        del sys.modules[name]
    assert sys.meta_path == finders


def written(folder: Path, **files: str) -> None:
    """Writes modules, given by dotted names with "__" for ".", with their text; their folders become packages."""
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in list(path.relative_to(folder).parents)[:-1]:
            (folder / parent / "__init__.py").touch()
    importlib.invalidate_caches()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source tree of mamba-ssm on the path, without kernels."""
    written(
        tmp_path,
        mamba_ssm__ops__selective_scan_interface="""import selective_scan_cuda
selective_scan_fn = 'theirs'
extra = 5
""",
        mamba_ssm__models__lm="from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as found\n",
        mamba_ssm__models__mixer_seq_simple="MambaLMHeadModel = 'their network'\n",
        mamba_ssm__modules__mamba2="import a_package_that_nobody_has\n",
    )
    (tmp_path / "mamba_ssm" / "__init__.py").write_text(
        "__version__ = '1.0.1'\n"
        "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn\n"
        "from mamba_ssm.modules.mamba2 import Mamba2\n"
        "from .models.lm import found as Model\n"
        "from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def absent(*names: str) -> bool:
    return all(find_spec(name) is None for name in names)


def test_nothing_happens_at_import():
    assert absent("mamba_ssm", *EXTENSIONS)


def test_all_names_at_once_and_back():
    assert compat.install() == compat.install() == tuple(_install.PACKAGES)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    assert find_spec(INTERFACE) is not None
    import mamba_ssm

    assert selective_scan_fn is mamba_ssm.selective_scan_fn is mtlkit.selective_scan_fn
    assert Version(mamba_ssm.__version__) >= Version("1.2")
    for name in EXTENSIONS:
        assert callable(importlib.import_module(name).bwd)
    compat.uninstall()
    assert absent("mamba_ssm", *EXTENSIONS)
    assert not [name for name in sys.modules if name.startswith(("mamba_ssm", "selective_scan_cuda"))]


def test_submodules_are_attributes_of_their_packages():
    compat.install("mamba_ssm")
    import mamba_ssm

    assert mamba_ssm.ops.selective_scan_interface.selective_scan_fn is mtlkit.selective_scan_fn


def test_by_name_and_by_the_older_functions():
    assert compat.install("selective_scan_cuda_core") == ("selective_scan_cuda_core",)
    assert absent("mamba_ssm", "selective_scan_cuda")
    assert compat.install_mamba_ssm()
    assert compat.install_vmamba()
    assert not absent("mamba_ssm")
    compat.uninstall_mamba_ssm()
    compat.uninstall_mamba_ssm()
    assert absent("mamba_ssm")
    assert not absent(*EXTENSIONS)
    compat.uninstall_vmamba()
    assert absent(*EXTENSIONS)


def test_an_unknown_name_is_refused():
    for function in (compat.install, compat.uninstall):
        with pytest.raises(ValueError, match=r"names: expected some of causal_conv1d, .*, got 'mamba'"):
            function("mamba")


# --- what mtlkit does not provide -------------------------------------------------------------------------------------


def test_a_missing_module_says_who_stands_there():
    compat.install("mamba_ssm")
    message = r"ops.mamba9: mtlkit.compat replaces mamba_ssm and does not provide this; modules are .*\.ops"
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module("mamba_ssm.ops.mamba9")
    with pytest.raises(ImportError, match=r"mamba_ssm.Mamba9: .*; mamba_ssm has .*mamba_inner_fn"):
        from mamba_ssm import Mamba9  # noqa: F401
    with pytest.raises(ImportError, match=r"selective_scan_interface.nothing: .*; mamba_ssm.ops.* has .*_ref"):
        from mamba_ssm.ops.selective_scan_interface import nothing  # noqa: F401
    import mamba_ssm

    assert not hasattr(mamba_ssm, "Mamba9")


# --- next to the package itself ---------------------------------------------------------------------------------------


def test_a_package_without_kernels_is_replaced_with_one_warning(tree):
    with pytest.warns(UserWarning, match=r"mamba_ssm in \S+, which has no kernels that run here: there is no "):
        assert compat.install_mamba_ssm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compat.install("mamba_ssm")
    import mamba_ssm

    assert mamba_ssm.selective_scan_fn is mtlkit.selective_scan_fn
    assert mamba_ssm.__version__ == "1.0.1"
    from mamba_ssm.models.lm import found

    assert found is mamba_ssm.Model is mtlkit.selective_scan_fn  # their model, on mtlkit's scan
    assert mamba_ssm.models.lm.found is found
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel  # their module has more layers than mtlkit's

    assert MambaLMHeadModel == mamba_ssm.MambaLMHeadModel == "their network"
    with pytest.raises(ImportError, match=r"mamba_ssm.Mamba2: .*own does not load: No module named 'a_package_that"):
        from mamba_ssm import Mamba2  # noqa: F401
    from mamba_ssm.ops.selective_scan_interface import extra

    assert extra == 5
    compat.uninstall()
    with pytest.raises(ModuleNotFoundError, match="No module named 'selective_scan_cuda'"):
        importlib.import_module(INTERFACE)


def test_kernels_that_do_not_load_are_none(tree):
    written(tree, selective_scan_cuda="raise ImportError('undefined symbol')\n")
    with pytest.warns(UserWarning, match="selective_scan_cuda does not load: undefined symbol"):
        assert compat.install_mamba_ssm()


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_compiled_kernels_without_a_gpu_are_none(tree, monkeypatch, gpu, imported):
    written(tree, selective_scan_cuda="")
    monkeypatch.setattr(_install, "ExtensionFileLoader", SourceFileLoader)  # makes the file above count as an extension
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    if imported:
        importlib.import_module("selective_scan_cuda")
    if gpu:
        assert not compat.install_mamba_ssm()
    else:
        with pytest.warns(UserWarning, match="selective_scan_cuda is for a GPU, and torch sees none"):
            assert compat.install_mamba_ssm()


@pytest.mark.parametrize("imported", [False, True])
def test_a_working_package_is_left_alone(tree, imported):
    written(tree, selective_scan_cuda="")
    (tree / "mamba_ssm" / "__init__.py").write_text("")
    interface = importlib.import_module(INTERFACE) if imported else None
    assert not compat.install_mamba_ssm()
    assert compat.install("mamba_ssm", "selective_scan_cuda_core") == ("selective_scan_cuda_core",)
    interface = interface or importlib.import_module(INTERFACE)
    assert interface.selective_scan_fn == "theirs"
    assert compat.install_mamba_ssm(replace=True)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    assert selective_scan_fn is mtlkit.selective_scan_fn
    compat.uninstall_mamba_ssm()
    assert importlib.import_module(INTERFACE) is interface


def test_a_module_registered_by_hand_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    assert compat.install("selective_scan_cuda") == ()
    assert "selective_scan_cuda" not in compat.install()
