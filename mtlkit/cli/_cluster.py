"""The options of commands that run on a Ray cluster, too."""

from typing import Any


def add_ray(add: Any, what: str) -> None:
    """Adds them.

    Args:
        add: adds an option.
        what: is spread over the cluster.
    """
    words = f"spread {what} over a Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT"
    add("--ray", metavar="ADDRESS", help=words)
    add("--ray-cpus", type=int, default=1, metavar="N", help="CPUs of each job on the cluster; default 1")
