"""The terminal of the commands."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from mtlkit._text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def open_console(**options: Any) -> "Console":
    """Rich's console without interpretation of text, also in tables: no markup, no emoji, control characters escaped.

    Names of files and classes may contain any of these, so text is printed as `str`, not as rich's `Text`. A closed
    standard output is handled by `mtlkit.cli.main`.
    """
    from rich.console import Console

    class OpenConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

        def render_str(self, text: str, **style: Any) -> "Text":
            return super().render_str(printable(text), **style)

    return OpenConsole(highlight=False, markup=False, emoji=False, **options)


def open_table(*headings: str, title: str, **options: Any) -> "Table":
    """Rich's table with its title on the left, which never truncates cells.

    If it is too wide, cells wrap between words, and if necessary inside words. The options are those of rich's `Table`.
    """
    from rich.measure import Measurement
    from rich.table import Column, Table

    class OpenTable(Table):
        def __rich_console__(self, console: Any, options: Any) -> Any:
            spans = []
            for column in self.columns:
                cells = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
                spans.append((max(cell.minimum for cell in cells), max(cell.maximum for cell in cells)))
            frame = 3 * len(spans) + 1
            if frame + sum(least for least, _ in spans) <= options.max_width:
                for column, (least, most) in zip(self.columns, spans, strict=True):
                    column.no_wrap = least == most
            return super().__rich_console__(console, options)

    columns = (Column(name, overflow="fold") for name in headings)
    return OpenTable(*columns, title=title, title_justify="left", **options)


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> list[str]:
    """The lines of a table, without rich.

    Args:
        headings: of the columns.
        rows: the cells, in which what is not printable stands as its escape.
        right: headings of the columns that are aligned to the right.

    Example:
        >>> from mtlkit.cli._console import table_lines
        >>> for line in table_lines(["image", "pixels"], [["a", "7"], ["scan 2", "120"]], ["pixels"]):
        ...     print(line)
        image   pixels
        ------  ------
        a            7
        scan 2     120
    """
    cells = [[printable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    marks = [f"{'>' if heading in right else '<'}{width}" for heading, width in zip(headings, widths, strict=True)]
    lines = ("  ".join(f"{cell:{mark}}" for cell, mark in zip(row, marks, strict=True)) for row in cells)
    return [line.rstrip() for line in lines]
