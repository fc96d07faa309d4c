"""A pytest plugin that makes mtlkit load the module and libraries of build/<variant>: see tests/variants.py."""

import importlib.util
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ["VARIANT"])
(MODULE,) = FOLDER.glob("_C.*.so")
_spec = importlib.util.spec_from_file_location("mtlkit._C", MODULE)
sys.modules["mtlkit._C"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["mtlkit._C"])

from mtlkit.deploy import _library  # noqa: E402 - it imports the module

_library._FOLDER = FOLDER / "deploy"
