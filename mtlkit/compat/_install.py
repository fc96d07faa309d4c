"""Import names of other packages that mtlkit provides, and how they are redirected to mtlkit's functions.

A finder at the start of `sys.meta_path` creates the modules when they are first imported. If the package itself is on
the path, its other modules are found there, and the names in its `__init__.py` stay importable.
"""

import ast
import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from mtlkit.compat._cuda import allow_cpu_contexts


class Package(NamedTuple):
    """A package whose imports mtlkit can redirect."""

    kernels: tuple[str, ...]  # the extension modules of a working installation
    served_by: str  # module of mtlkit.compat that defines MODULES: full name of each replaced module -> its contents
    # It may also define THEIRS_FIRST: modules, and names in modules, that an installed package keeps.


_EXTENSION = "mtlkit.compat.selective_scan_cuda"
PACKAGES = {
    "causal_conv1d": Package(("causal_conv1d_cuda",), "mtlkit.compat.causal_conv1d"),
    "causal_conv1d_cuda": Package(("causal_conv1d_cuda",), "mtlkit.compat.causal_conv1d"),
    "mamba_ssm": Package(("selective_scan_cuda",), "mtlkit.compat.mamba_ssm"),
    "selective_scan": Package(("selective_scan_cuda_core",), "mtlkit.compat.selective_scan"),
    "selective_scan_cuda": Package(("selective_scan_cuda",), _EXTENSION),
    "selective_scan_cuda_core": Package(("selective_scan_cuda_core",), _EXTENSION),
    "selective_scan_cuda_ndstate": Package(("selective_scan_cuda_ndstate",), _EXTENSION),
    "selective_scan_cuda_nrow": Package(("selective_scan_cuda_nrow",), _EXTENSION),
    "selective_scan_cuda_oflex": Package(("selective_scan_cuda_oflex",), _EXTENSION),
    "selective_scan_vmamba": Package(("selective_scan_vmamba.selective_scan_cuda_core",), _EXTENSION),
    "selective_scan_vmamba_pt202": Package(("selective_scan_vmamba_pt202.selective_scan_cuda_core",), _EXTENSION),
}
VMAMBA = tuple(name for name in PACKAGES if name.startswith("selective_scan"))


def install(*names: str, replace: bool = False) -> tuple[str, ...]:
    """Redirects the import names of other packages to mtlkit's functions; call it before the code that imports them.

    An installed package whose compiled kernels can run here is not replaced. If it has no kernels, as mamba-ssm by
    default, or needs a GPU that torch does not see, the modules that mtlkit provides are replaced with a warning, and
    all others stay importable. If torch sees no GPU, `with torch.cuda.device(x.device)`, as in VMamba, works for an x
    on the CPU until `uninstall`.

    Args:
        names: import names of packages; all available ones if none is given.
        replace: whether to replace a working installation too; code that imported its functions before keeps them.

    Returns:
        The names that mtlkit now provides.

    Raises:
        ValueError: mtlkit does not provide a name.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.install("selective_scan_cuda_core", replace=True)
        ('selective_scan_cuda_core',)
        >>> import selective_scan_cuda_core
        >>> callable(selective_scan_cuda_core.fwd)
        True
        >>> mtlkit.compat.uninstall()
    """
    names = names or tuple(PACKAGES)
    _check(names)
    for name in names:
        if name in _FINDER.before:
            continue
        place = _installed(name)
        if place is not None and not replace:
            reason = _lacks(PACKAGES[name].kernels)
            if reason is None:
                continue
            warnings.warn(
                f"mtlkit.compat replaces {name} in {_shown(place)}, which has no kernels that run here: {reason}",
                stacklevel=2,
            )
        _FINDER.add(name)
    return tuple(name for name in names if name in _FINDER.before)


def uninstall(*names: str) -> None:
    """Undoes `install` for the names, or for all if none is given.

    Raises:
        ValueError: mtlkit does not provide a name.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.uninstall()
    """
    _check(names)
    for name in names or tuple(_FINDER.before):
        _FINDER.remove(name)


def install_mamba_ssm(*, replace: bool = False) -> bool:
    """`install("mamba_ssm")`; returns whether imports now find mtlkit's functions.

    Args:
        replace: whether to replace a working mamba-ssm too.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.install_mamba_ssm(replace=True)
        True
        >>> from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        >>> selective_scan_fn is mtlkit.selective_scan_fn
        True
        >>> mtlkit.compat.uninstall_mamba_ssm()
    """
    return bool(install("mamba_ssm", replace=replace))


def uninstall_mamba_ssm() -> None:
    """Undoes `install_mamba_ssm`; does nothing without it.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.uninstall_mamba_ssm()
    """
    uninstall("mamba_ssm")


def install_vmamba(*, replace: bool = False) -> bool:
    """`install` for the imports of VMamba and derived projects: `selective_scan` and the `selective_scan_cuda*`.

    Args:
        replace: whether to replace working extensions too.

    Returns:
        Whether imports of all these names now find mtlkit's functions.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.install_vmamba(replace=True)
        True
        >>> import selective_scan_cuda_oflex
        >>> callable(selective_scan_cuda_oflex.fwd)
        True
        >>> mtlkit.compat.uninstall_vmamba()
    """
    return install(*VMAMBA, replace=replace) == VMAMBA


def uninstall_vmamba() -> None:
    """Undoes `install_vmamba`; does nothing without it.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.uninstall_vmamba()
    """
    uninstall(*VMAMBA)


def _check(names: Sequence[str]) -> None:
    for name in names:
        if name not in PACKAGES:
            raise ValueError(f"names: expected some of {', '.join(PACKAGES)}, got {name!r}")


# --- installed packages -----------------------------------------------------------------------------------------------


def _installed(name: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
    """Returns the spec of the module that would be found without mtlkit."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = None if finder is _FINDER or find is None else find(name, path, None)
        if spec is not None:
            return spec
    module = sys.modules.get(name)
    if path is None and module is not None and not isinstance(module, _Served):  # registered by hand
        return module.__spec__ or ModuleSpec(name, None, origin=getattr(module, "__file__", None))
    return None


def _shown(spec: ModuleSpec) -> str:
    return spec.origin or next(iter(spec.submodule_search_locations or ()), "sys.modules")


def _lacks(kernels: tuple[str, ...]) -> str | None:
    """Returns why none of these extension modules can be used here; None if one can."""
    reason = None
    for name in kernels:
        module = sys.modules.get(name)
        loaded = module is not None and not isinstance(module, _Served)
        parent, _, _ = name.rpartition(".")
        above = _installed(parent) if parent else None
        spec = None if parent and above is None else _installed(name, above and above.submodule_search_locations)
        if spec is None or (spec.loader is None and not loaded):
            reason = f"there is no {name}"
            continue
        try:
            if not loaded and spec.loader is not None:
                spec.loader.exec_module(module_from_spec(spec))
        except Exception as error:
            reason = f"{name} does not load: {error}"
            continue
        if not isinstance(spec.loader, ExtensionFileLoader) or torch.cuda.is_available():
            return None
        reason = f"{name} is for a GPU, and torch sees none"
    return reason


# --- replacements -----------------------------------------------------------------------------------------------------


class _Served(ModuleType):
    """A module of mtlkit under the package's name; other names are looked up in the package's own `__init__.py`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if f"{self.__name__}.{name}" in _FINDER.modules:
            return importlib.import_module(f"{self.__name__}.{name}")
        exports = _FINDER.exports(self)
        if isinstance(exports.get(name), _Missing) or name not in exports:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return exports[name]


class _Missing(NamedTuple):
    """A name that an `__init__.py` does not define because the statement raised."""

    error: Exception


class _Finder:
    """Finds the modules of the packages that are installed; also their loader."""

    def __init__(self) -> None:
        self.before: dict[str, dict[str, ModuleType]] = {}  # package -> its modules in sys.modules until then
        self.modules: dict[str, Mapping[str, object]] = {}  # replaced module -> its contents
        self.theirs_first: set[str] = set()
        self.own: dict[str, dict[str, object]] = {}  # module -> what the package's own __init__.py defines

    def add(self, package: str) -> None:
        if not self.before:
            sys.meta_path.insert(0, self)
            allow_cpu_contexts(True)
        self.before[package] = _taken(package)
        served_by = importlib.import_module(PACKAGES[package].served_by)
        self.theirs_first.update(getattr(served_by, "THEIRS_FIRST", ()))
        contents = served_by.MODULES
        for name in [name for name in contents if f"{name}.".startswith(f"{package}.")]:
            self.modules[name] = contents[name]
            parent = name.rpartition(".")[0]
            while parent:
                self.modules.setdefault(parent, {})
                parent = parent.rpartition(".")[0]

    def remove(self, package: str) -> None:
        if package not in self.before:
            return
        _taken(package)
        sys.modules.update(self.before.pop(package))
        for table in (self.modules, self.own):
            for name in [name for name in table if f"{name}.".startswith(f"{package}.")]:
                del table[name]
        if not self.before:
            sys.meta_path.remove(self)
            allow_cpu_contexts(False)

    # called by the import system

    def find_spec(self, name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None):
        package = name.partition(".")[0]
        if package not in self.before:
            return None
        if name not in self.modules:
            found = _installed(name, path) if path else None
            if found is None:
                raise self.not_served(name, package)
            return found
        spec = ModuleSpec(name, self, origin="mtlkit.compat", is_package=True)  # type: ignore[arg-type]
        real = _installed(name, path)
        if real is not None and name in self.theirs_first:
            return real
        spec.submodule_search_locations = list((real and real.submodule_search_locations) or ())
        spec.loader_state = real
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Served(spec.name, f"{spec.name} as mtlkit serves it; see mtlkit.compat.")

    def exec_module(self, module: ModuleType) -> None:
        contents, theirs = self.modules[module.__name__], {}
        if module.__spec__ is not None and module.__spec__.loader_state is not None:
            theirs = self.ours_at_last(module)
        module.__dict__.update((name, value) for name, value in contents.items() if name not in theirs)

    def ours_at_last(self, module: ModuleType) -> dict[str, object]:
        """Returns those names of a module that mtlkit provides only if the package itself does not define them."""
        contents = self.modules.get(module.__name__, {})
        return {name: value for name, value in contents.items() if f"{module.__name__}.{name}" in self.theirs_first}

    def not_served(self, name: str, package: str) -> ModuleNotFoundError:
        """Returns the error for a missing module, or a missing name, which the import system also tries as a module."""
        parent, _, last = name.rpartition(".")
        missing = self.own.get(parent, {}).get(last)
        reason = f"; the package's own does not load: {missing.error}" if isinstance(missing, _Missing) else ""
        names = [entry for entry in self.modules.get(parent, ()) if not entry.startswith("__")]
        modules = [module for module, inside in self.modules.items() if inside and module.startswith(f"{package}.")]
        has = [f"{parent} has {', '.join(names)}"] * bool(names) + [f"modules are {', '.join(modules)}"] * bool(modules)
        message = f"{name}: mtlkit.compat replaces {package} and does not provide this{reason}; {'; '.join(has)}"
        error = ModuleNotFoundError(message)  # without name=, since the import system ignores one of that name
        if isinstance(missing, _Missing):
            error.__cause__ = missing.error
        return error

    def exports(self, module: ModuleType) -> dict[str, object]:
        """What the `__init__.py` of the package on the path defines, each statement by itself."""
        if module.__name__ in self.own:
            return self.own[module.__name__]
        found = self.own[module.__name__] = self.ours_at_last(module)
        real = module.__spec__ and module.__spec__.loader_state
        if real is None or not (real.origin or "").endswith(".py"):
            return found
        namespace = {"__name__": module.__name__, "__package__": module.__name__, "__file__": real.origin}
        namespace["__path__"] = module.__path__
        for statement in ast.parse(Path(real.origin).read_text(encoding="utf-8")).body:
            try:
                exec(compile(ast.Module([statement], []), real.origin, "exec"), namespace)
            except Exception as error:
                bound = {
                    alias.asname or alias.name
                    for n in ast.walk(statement)
                    for alias in getattr(n, "names", ())
                    if isinstance(alias, ast.alias)
                }
                found.update(dict.fromkeys(bound - found.keys(), _Missing(error)))
        found.update({name: value for name, value in namespace.items() if not name.startswith("__")})
        if "__version__" in namespace:
            found["__version__"] = namespace["__version__"]
        return found


def _taken(package: str) -> dict[str, ModuleType]:
    """The modules of a package, out of sys.modules."""
    names = [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]
    return {name: sys.modules.pop(name) for name in names}


_FINDER = _Finder()
