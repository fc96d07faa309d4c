"""`mtlkit --print-completion SHELL` and `mtlkit --version`: options that print something and end the command."""

import argparse
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from mtlkit import info
from mtlkit._extras import check_installed

SHELLS = ("bash", "zsh", "tcsh")
FOLDERS = ("DATA", "FOLDER", "RUN")  # the metavars of options that take a folder; others take any path


class PrintVersion(argparse.Action):
    """Prints the version and what runs the kernels, without importing torch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, help="print the version and which kernels are active, and exit", **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints, and exits."""
        print(info.summary())  # noqa: T201 - what was asked for
        parser.exit()


class PrintCompletion(argparse.Action):
    """Prints the script by which a shell completes commands, options and paths."""

    def __init__(self, **options: Any) -> None:
        words = "print the script that completes commands in a shell, and exit"
        super().__init__(choices=SHELLS, metavar="SHELL", help=f"{words}; SHELL: {', '.join(SHELLS)}", **options)

    def __call__(self, parser: argparse.ArgumentParser, _: argparse.Namespace, values: Any, *__: Any) -> None:
        """Prints, and exits."""
        check_installed("`mtlkit --print-completion`", "completion")
        print(completion(parser, values))  # noqa: T201 - what was asked for
        parser.exit()


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script by which a shell completes the options of a parser.

    Args:
        parser: of the whole command line.
        shell: "bash", "zsh" or "tcsh".

    Example:
        >>> from mtlkit.cli import parser
        >>> from mtlkit.cli.completion import completion
        >>> "_shtab_mtlkit()" in completion(parser(), "bash")
        True
    """
    import shtab

    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
        elif action.metavar == "RECIPE":
            action.complete = {"bash": "_mtlkit_recipes", "zsh": "_files", "tcsh": "f"}  # pyright: ignore[reportAttributeAccessIssue]
    recipes = " ".join(
        sorted(path.name[:-5] for path in files("mtlkit.configs").iterdir() if path.name.endswith(".yaml"))
    )
    preamble = {"bash": f'_mtlkit_recipes() {{ compgen -W \'{recipes}\' -- "$1"; _shtab_compgen_files "$1"; }}'}
    return shtab.complete(parser, shell=shell, preamble=preamble)  # pyright: ignore[reportArgumentType]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
