"""Errors that say that there is not enough memory, of a CPU or a GPU."""

SIGNS = (
    "can't allocate memory",  # torch's allocator on CPUs
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MemoryError",  # of a process that loads data, with a traceback
    "Cannot allocate memory",
)
KILLED = ("is killed by signal: Killed", "out of shared memory", "exited unexpectedly")  # processes that load data


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory.

    Example:
        >>> from mtlkit._memory import out_of_memory
        >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("CUDA error: out of memory"))
        (True, True)
        >>> out_of_memory(RuntimeError("shapes differ"))
        False
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, OSError | RuntimeError) and any(sign in str(error) for sign in SIGNS)


def loader_killed(error: BaseException) -> bool:
    """Whether an error says that the system ended a process that loads data, which it does when memory runs out."""
    words = str(error) if isinstance(error, RuntimeError) else ""
    return "DataLoader worker" in words and any(sign in words for sign in KILLED)
