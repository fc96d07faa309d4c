"""A plugin for pytest that has mtlkit load the module of build/<sanitizer>: see tests/sanitize.py."""

import importlib.util
import os
import sys
from pathlib import Path

(MODULE,) = Path(os.environ["SANITIZED"]).glob("_C.*.so")
_spec = importlib.util.spec_from_file_location("mtlkit._C", MODULE)
sys.modules["mtlkit._C"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["mtlkit._C"])
