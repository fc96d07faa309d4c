"""Progress displays for commands that take a while."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec


@contextmanager
def progress_bar(words: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with how many of how many are done; the bar shows on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def progress_shown(words: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """As `progress_bar`; where rich is not installed it is a count, and without a terminal nothing is loaded."""
    if sys.stderr.isatty() and find_spec("rich") is not None:
        return progress_bar(words)
    return _count_shown(words)


@contextmanager
def _count_shown(words: str) -> Iterator[Callable[[int, int], None]]:
    shown = sys.stderr.isatty()

    def show(text: str) -> None:
        if shown:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    show(f"{words} ...")
    try:
        yield lambda done, total: show(f"{words} {done}/{total}")
    finally:
        show("")
