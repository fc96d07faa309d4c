"""Names of images: as keys, and as tables, masks and splits write them."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from mtlkit._text import composed
from mtlkit.data.files import DICOM, PICTURES


def key_of(folder: str, image: Path) -> str:
    """The key of an image: its folder and its name without suffix, in Unicode normal form."""
    return composed(f"{folder}/{image.stem}")


def is_text(name: str | Path) -> bool:
    """Whether a name can be written to a text file, which is not so for bytes that are not UTF-8."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


class Names:
    r"""Finds names as other programs write them.

    A name is tried unchanged, with backslashes as on Windows, without a leading folder images/, and without an image
    suffix, each in any Unicode normal form. If that fails, case and spaces are ignored, and the name is found if
    exactly one fits.

    Args:
        names: the existing names.

    Example:
        >>> from mtlkit.data.names import Names
        >>> names = Names(["cyst/scan 1", "cyst/scan 2"])
        >>> names.find("images\\cyst\\scan 1.png"), names.find("Cyst/Scan 2"), names.find("cyst/scan 3")
        ('cyst/scan 1', 'cyst/scan 2', None)
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = {composed(name): name for name in names}
        self._loose: dict[str, str | None] = {}
        for name in self._exact.values():
            loose = folded(name)
            self._loose[loose] = None if loose in self._loose else name

    def find(self, *names: str) -> str | None:
        """The first match for the given spellings, in their order; None if there is none."""
        forms = [composed(form) for name in names for form in _forms(name)]
        exact = next((form for form in forms if form in self._exact), None)
        if exact is not None:
            return self._exact[exact]
        return next((found for form in forms if (found := self._loose.get(folded(form))) is not None), None)


def folded(name: str) -> str:
    """A name without case and spaces, in normal form."""
    return composed(composed(" ".join(name.split())).casefold())


def _forms(name: str) -> Iterator[str]:
    for one in (name, name.replace("\\", "/")):
        yield one
        parts = PurePosixPath(one).parts
        if "images" in parts[:-1]:
            parts = parts[len(parts) - parts[::-1].index("images") :]
        path = PurePosixPath(*parts)
        yield str(path)
        if path.suffix.lower() in (*PICTURES, *DICOM):
            yield str(path.with_suffix(""))
