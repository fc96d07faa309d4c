"""The terminal of the commands."""

from typing import TYPE_CHECKING, Any

from mtlkit._text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def open_console(**options: Any) -> "Console":
    """Rich's console, which shows text as it is, also in tables: no markup, no emoji, control characters as escapes.

    Names of files and classes may hold any of these, so what is printed is given as `str`, not as rich's `Text`.
    That the reader of standard output has gone is left to `mtlkit.cli.main`.
    """
    from rich.console import Console

    class OpenConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

        def render_str(self, text: str, **style: Any) -> "Text":
            return super().render_str(printable(text), **style)

    return OpenConsole(highlight=False, markup=False, emoji=False, **options)
