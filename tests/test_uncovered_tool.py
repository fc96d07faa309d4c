"""tools/uncovered.py, with a made-up report."""

import importlib.util


def test_names_public_functions_that_nothing_enters(root):
    spec = importlib.util.spec_from_file_location("uncovered", root / "tools/uncovered.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    idle, entered = {"executed_lines": [], "missing_lines": [7, 8]}, {"executed_lines": [3], "missing_lines": [4]}
    functions = {"read": idle, "write": entered, "_hidden": idle, "Scan.run": idle, "_Scan.run": idle, "": idle}
    functions["declared"] = {"executed_lines": [], "missing_lines": []}  # an overload, a protocol
    found = tool.never_entered({"files": {"mtlkit/a.py": {"functions": functions}}})
    assert list(found) == ["mtlkit/a.py:7 read", "mtlkit/a.py:7 Scan.run"]
