"""The terminal of the commands."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def open_console(**options: Any) -> "Console":
    """Rich's console, which leaves it to `mtlkit.cli.main` that the reader of standard output has gone."""
    from rich.console import Console

    class OpenConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return OpenConsole(highlight=False, **options)
