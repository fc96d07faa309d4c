"""The terminal of the commands."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def open_console(**options: Any) -> "Console":
    """Rich's console, without markup, since names of files and classes may look like it.

    That the reader of standard output has gone is left to `mtlkit.cli.main`.
    """
    from rich.console import Console

    class OpenConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return OpenConsole(highlight=False, markup=False, **options)
