"""Checks that type checkers know the type of every public name; `make lint` runs it.

A type may be declared, or inferred from a value, such as `self.norm = nn.LayerNorm(8)`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> str | None:
    """Prints the counts; returns what is wrong in words, or None."""
    # pyright finds the package by the first python on the path
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "pyright", "--verifytypes", "mtlkit", "--ignoreexternal", "--outputjson"]
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = json.loads(run.stdout)["typeCompleteness"]
    if Path(found["packageRootDirectory"]).resolve() != ROOT / "mtlkit":
        return f"pyright read {found['packageRootDirectory']} instead of {ROOT / 'mtlkit'}"
    public = [symbol for symbol in found["symbols"] if symbol["isExported"]]
    inferred = [symbol["name"] for symbol in public if symbol["isTypeAmbiguous"]]
    unknown = [symbol["name"] for symbol in public if not symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"]]
    declared = len(public) - len(inferred) - len(unknown)
    print(f"{len(public)} public names: types of {declared} declared, of {len(inferred)} inferred")
    return f"types not known: {', '.join(unknown)}" if unknown else None


if __name__ == "__main__":
    sys.exit(main())
