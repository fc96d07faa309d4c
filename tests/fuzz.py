"""Fuzzes the operators: random calls against the formula in float64, on every backend that runs on a CPU.

    python -m tests.fuzz --minutes 30      for this time
    python -m tests.fuzz --calls 100000    this many calls
    python -m tests.fuzz --seed 4711       one call, as named by a failure

A number determines its call completely: operator, shapes, dtypes, memory layouts, values, required gradients, backend,
threads and instruction set. CUDA kernels run on the host, Triton kernels in its interpreter. Every failure prints a
command that repeats it; after a crash, the last number of the progress output is the call to repeat.
"""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path


def main() -> int:
    import pytest

    from harness.cuda_on_host import build_kernels, serve
    from harness.fuzz_draws import BACKENDS
    from harness.fuzz_judge import Tally, fuzz
    from harness.interpreter import patch_once
    from harness.poison import poison

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="to stop after")
    parser.add_argument("--calls", type=int, help="to make")
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, help="number of the only call")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="calls of others are passed over")
    options = parser.parse_args()
    first, calls = (options.first, options.calls) if options.seed is None else (options.seed, 1)
    backends = tuple(options.backends.split(","))
    start, tally, told = time.monotonic(), Tally(), 0
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        if "cuda" in backends:
            serve(build_kernels(), patch)
        if "triton" in backends:
            patch_once()
        numbers = itertools.count(first) if calls is None else range(first, first + calls)
        for number in fuzz(numbers, backends, tally):
            for line in tally.failed[told:]:
                print(line, flush=True)
            told = len(tally.failed)
            if number % 1000 == 0:
                print(f"at {number}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            if time.monotonic() - start > 60 * options.minutes:
                break
    print(*tally.failed[told:], tally, f"{time.monotonic() - start:.0f} s", sep="\n")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read with PyTorch: more threads than cores must not spin
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
