"""Plants faults in a copy of the sources, one at a time, and reports those that the tests do not detect.

    python -m tests.mutants [--only TEXT] [--jobs N] [--resume]

The status is 0 if the tests pass without a fault, every fault compiles, at least 97 % of the faults are detected, and
the list gives a reason for each survivor.
"""

import argparse
import json
import queue
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .faults import Fault, load
from .sandbox import ROOT, RejectedError, Sandbox

NOTICED_SHARE = 0.97
RESULTS = ROOT / "build" / "mutants.json"
ORDER = ("Python", "Triton", "C++", "CUDA")  # the cheapest first


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", metavar="TEXT", action="append", help="faults with this in their name or file; repeatable"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="copies that are worked in at once (default 1)"
    )
    parser.add_argument("--trust", action="store_true", help="do not run the tests without a fault first")
    parser.add_argument("--resume", action="store_true", help="skip faults that have a verdict already")
    return parser.parse_args(arguments)


def verdict_of(sandbox: Sandbox, fault: Fault) -> dict:
    """Verdict ("noticed", "survived" or "rejected"), the evidence, and seconds."""
    start = time.monotonic()
    try:
        failure = sandbox.plant(fault)
        verdict = "noticed" if failure else "survived"
    except RejectedError as error:
        verdict, failure = "rejected", str(error)
    return {"verdict": verdict, "by": failure, "seconds": round(time.monotonic() - start), "digest": fault.digest}


def report(faults: list[Fault], results: dict[str, dict]) -> bool:
    """Prints the table; returns whether everything is as expected."""
    verdicts = {fault.title: results[fault.title]["verdict"] for fault in faults}
    print("\n| kind | faults | noticed |\n|---|---|---|")
    for kind in ORDER:
        titles = [fault.title for fault in faults if fault.kind == kind]
        if titles:
            print(f"| {kind} | {len(titles)} | {Counter(map(verdicts.get, titles))['noticed']} |")
    counts = Counter(verdicts.values())
    share = counts["noticed"] / len(faults)
    print(f"| all | {len(faults)} | {counts['noticed']} ({share:.1%}) |")
    good = share >= NOTICED_SHARE and not counts["rejected"]
    for fault in faults:
        if verdicts[fault.title] == "survived":
            print(f"\nsurvived: {fault.title}\n  {fault.survives or 'no reason is given'}")
            good = good and bool(fault.survives)
        if verdicts[fault.title] == "rejected":
            print(f"\nrejected: {fault.title}\n{results[fault.title]['by']}")
    return good


def main(arguments: list[str] | None = None) -> int:
    given = options(arguments)
    faults = sorted(load(), key=lambda fault: ORDER.index(fault.kind))
    if given.only:
        faults = [f for f in faults if any(text in f.title for text in given.only)]
    if not faults:
        print("--only: no fault has this in its name or file")
        return 2
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = {f.title for f in faults if given.resume and results.get(f.title, {}).get("digest") == f.digest}
    todo = [f for f in faults if f.title not in known or results[f.title]["verdict"] == "rejected"]

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(given.jobs) as pool:
        free: queue.Queue[Sandbox] = queue.Queue()

        def work(fault: Fault) -> tuple[Fault, dict]:
            sandbox = free.get()
            try:
                return fault, verdict_of(sandbox, fault)
            finally:
                free.put(sandbox)

        for i in range(min(given.jobs, len(todo))):
            free.put(Sandbox(Path(folder).resolve() / f"copy-{i}", todo))
        if todo and not given.trust:
            tests = sorted({test for fault in todo for test in fault.tests})
            print(f"{len(todo)} faults; {len(tests)} files of tests without one ...", flush=True)
            sandbox = free.get()
            try:
                failure = sandbox.run_tests(tests)
            except RejectedError as error:
                failure = str(error)
            free.put(sandbox)
            if failure:
                print(f"without a fault: {failure}")
                return 2
        for fault, result in pool.map(work, todo):
            results[fault.title] = result
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1))
            by = result["by"].splitlines()[-1][:100] if result["by"] else ""
            print(f"{result['verdict']:<9} {result['seconds']:>4} s  {fault.title}  {by}", flush=True)
        while not free.empty():
            free.get().close()
    return 0 if report(faults, results) else 1


if __name__ == "__main__":
    sys.exit(main())
