"""The options of commands that can run on a Ray cluster."""

from typing import Any


def add_ray(add: Any, what: str) -> None:
    """Adds the options.

    Args:
        add: function that adds an option.
        what: the jobs to spread over the cluster, in words.
    """
    words = f"spread {what} over a Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT"
    add("--ray", metavar="ADDRESS", help=words)
    add("--ray-cpus", type=int, default=1, metavar="N", help="CPUs of each job on the cluster; default 1")
