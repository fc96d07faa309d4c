"""Runs pytest for each request, in a fork of this process, in which slow imports are already done.

Requests are lines of JSON on standard input: [arguments, file for the output, seconds]. Each answer is a line with the
exit status, negative for a signal. A run that takes longer than the given seconds is killed.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time

PACKAGES = ("torch", "hypothesis", "lightning", "torchmetrics", "torchvision.transforms.v2", "timm", "pydicom")


def run(arguments: list[str], log: str) -> None:
    """Runs pytest and ends the process."""
    os.setsid()
    with open(log, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor is all that is wanted
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import pytest

    status = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(int(status))


def wait(process: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> None:
    for name in ("pytest", *PACKAGES):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        arguments, log, seconds = json.loads(line)
        process = os.fork()
        if process == 0:
            run(arguments, log)
        print(wait(process, seconds), flush=True)


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    main()
