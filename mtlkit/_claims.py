"""Claims: one process at a time writes to a folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtlkit.errors import InUseError

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems that have none; nothing is claimed there
_held: set[Path] = set()  # by this process, which would lose a lock by opening and closing its file again


@contextmanager
def claimed(path: Path, shown: Path) -> Iterator[None]:
    """Holds a lock on the file `path`, which ends with the process however that ends; then the file is removed.

    Args:
        path: the file.
        shown: what is claimed, for the message.

    Raises:
        InUseError: another process holds it, or this one does.
        OSError: the file cannot be made.
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
    """The descriptor of the file, locked."""
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
        os.close(file)  # its holder has removed it in between
