"""Reads a coverage report: the share of mtlkit's lines that tests run, and the public functions that no test calls.

make test COVER=1
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def never_entered(report: dict[str, Any]) -> Iterator[str]:
    """`file:line name` of each function without a leading underscore in its name or its class's."""
    for file, found in sorted(report["files"].items()):
        for name, function in found["functions"].items():
            lines, public = function["executed_lines"], not any(part.startswith("_") for part in name.split("."))
            if name and public and not lines and function["missing_lines"]:
                yield f"{file}:{function['missing_lines'][0]} {name}"


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="report of `coverage json` or of pytest's --cov-report=json")
    report = json.loads(parser.parse_args().report.read_text())
    functions = list(never_entered(report))
    print(f"{report['totals']['percent_covered']:.1f} % of {report['totals']['num_statements']} statements run")
    print(f"{len(functions)} public functions that no test calls{':' if functions else ''}", *functions, sep="\n  ")


if __name__ == "__main__":
    main()
