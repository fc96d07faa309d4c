"""Recognises errors that mean that CPU or GPU memory has run out."""

SIGNS = (
    "can't allocate memory",  # torch's CPU allocator
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MemoryError",  # in the traceback of a DataLoader worker
    "Cannot allocate memory",
)
KILLED = ("is killed by signal: Killed", "out of shared memory", "exited unexpectedly")  # DataLoader workers


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that memory has run out.

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
    """Returns whether an error means that the system killed a DataLoader worker, as it does when memory runs out."""
    words = str(error) if isinstance(error, RuntimeError) else ""
    return "DataLoader worker" in words and any(sign in words for sign in KILLED)
