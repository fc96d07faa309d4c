"""Claims: locks that let only one process write to a folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtlkit.errors import InUseError

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems without locks: nothing is claimed
_held: set[Path] = set()  # by this process; closing another descriptor of the file would release the lock


@contextmanager
def claimed(path: Path, shown: Path) -> Iterator[None]:
    """Holds a lock on the file `path` and removes the file at the end; if the process dies, the lock is released.

    Args:
        path: the file to lock.
        shown: name of the claimed folder, for the message.

    Raises:
        InUseError: another process, or this one, already holds the lock.
        OSError: the file cannot be created.
    """
    if path in _held:
        raise InUseError(f"{shown}: this process writes to it already")
    _held.add(path)
    try:
        file = _lock(path, shown)
        try:
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(file)
    finally:
        _held.discard(path)


def _lock(path: Path, shown: Path) -> int:
    """Creates and locks the file, and returns its descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            who = os.read(file, 200).decode(errors="replace").strip()
            if error.errno not in _NO_LOCKS:
                os.close(file)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise InUseError(f"{shown}: another process writes to it ({who})") from None
                raise
        try:
            if os.path.samestat(os.fstat(file), os.lstat(path)):
                return file
        except FileNotFoundError:
            pass
        os.close(file)  # the previous holder removed the file before we locked it
