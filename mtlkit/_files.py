"""Files written whole or not at all, and the text of JSON and CSV."""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlkit.errors import DataError, ExistsError


def check_new(path: str | Path, *, force: bool = False) -> None:
    """Raises what `written_whole` would, for callers that work long before they write."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: expected a file, found a folder")
    if path.exists() and not force:
        raise ExistsError(f"{path}: the file exists already")


@contextmanager
def written_whole(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` when all has gone well, and vanishes when not.

    Args:
        path: the file; links are followed.
        force: replaces it if it exists.

    Raises:
        ExistsError: `path` exists already, and `force` is not given.
        DataError: it cannot be written.
    """
    check_new(path, force=force)
    real = Path(os.path.realpath(path))
    draft = real.with_name(f".{real.name}.{os.getpid()}")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(real)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        draft.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """For JSON: dictionaries and lists, and None for what is no finite number, of which JSON knows none."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any) -> str:
    """`value` as JSON."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n"


def write_json(path: str | Path, value: Any, *, force: bool = False) -> None:
    """Writes `value` as JSON, whole or not at all."""
    with written_whole(path, force=force) as draft:
        draft.write_text(json_text(value), encoding="utf-8")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as comma-separated text: a column for each name that any row has, empty where it is missing or None."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
