"""Runs a script or module with all names of mtlkit.compat installed: python -m mtlkit.compat script.py arguments."""

import contextlib
import importlib.util
import sys
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import NoReturn

from mtlkit.compat import cuda_on_cpu, install

OURS = (__file__, contextlib.__file__, "<frozen runpy>")  # files of the frames above the script's
PROGRAM = "python -m mtlkit.compat"
USAGE = f"""usage: {PROGRAM} [--cpu] script.py [argument ...]
       {PROGRAM} [--cpu] -m module [argument ...]

Runs a script, a folder with a __main__.py, or a module as python does, after mtlkit.compat.install(): its imports of
mamba_ssm, causal_conv1d, selective_scan and selective_scan_cuda* find mtlkit where those have no compiled kernels.
With --cpu, what it moves to a CUDA device stays on the CPU where torch sees no GPU."""


def main(arguments: list[str]) -> None:
    """Runs the script or module that the arguments name as `__main__`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--cpu":
        with cuda_on_cpu():
            main(arguments[1:])
    elif arguments[0] == "-m":
        if len(arguments) < 2:
            _stop("expected the name of a module after -m, got nothing")
        install()
        spec, code = _module(arguments[1])
        sys.argv = [spec.origin or arguments[1], *arguments[2:]]
        _run(code, spec.origin, spec)
    elif arguments[0].startswith("-"):
        _stop(f"expected a script, -m or --cpu, got the option {arguments[0]}")
    else:
        install()
        sys.argv = list(arguments)
        _run(*_script(Path(arguments[0])), None)


def _stop(message: str) -> NoReturn:
    print(f"{PROGRAM}: {message}", file=sys.stderr)  # noqa: T201 - as Python itself does
    raise SystemExit(2)


def _script(path: Path) -> tuple[CodeType, str]:
    """Returns the code of a script and its file; puts its folder first in sys.path instead of the current one."""
    folder = path.is_dir()
    file = (path / "__main__.py" if folder else path).absolute()
    try:
        text = file.read_bytes()
    except OSError as error:
        _stop(f"can't open file {str(file)!r}: {error.strerror}")
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(path.absolute() if folder else path.resolve().parent)
    return compile(text, str(file), "exec", dont_inherit=True), str(file)


def _module(name: str) -> tuple[ModuleSpec, CodeType]:
    """Returns the spec and code of a module, or of the `__main__` of a package."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        _stop(f"no module {name}: {error}")
    code = None
    if spec is not None and isinstance(spec.loader, InspectLoader):
        code = spec.loader.get_code(spec.name)
    if spec is None or code is None:
        _stop(f"no module named {name} that can be run")
    return spec, code


def _run(code: CodeType, file: str | None, spec: ModuleSpec | None) -> None:
    module = ModuleType("__main__")
    module.__dict__.update(__file__=file, __spec__=spec, __package__=spec.parent if spec else None)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in OURS:
            trace = trace.tb_next  # Python's own tracebacks begin in the script, too
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        raise SystemExit(1) from None
