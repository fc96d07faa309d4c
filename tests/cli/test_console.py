"""Output is shown literally: no markup, no emoji, no control sequences for the terminal."""

import io

from rich.table import Table

from mtlkit.cli._console import open_console, open_table, table_lines

NAMES = ["[/red]run", "[bold]x[/bold]", ":warning:", "\x1b[2J\x1b]0;t\x07", "\u202egnp", "a\nb", "\udce9", "\r\x9b"]
SHOWN = ["[/red]run", "[bold]x[/bold]", ":warning:", r"\x1b[2J\x1b]0;t\x07", r"\u202egnp", r"a\nb", r"\xe9", r"\r\x9b"]


def printed(*things, **options) -> str:
    file = io.StringIO()
    console = open_console(**{"file": file, "width": 100} | options)
    for thing in things:
        console.print(thing)
    return file.getvalue()


def test_lines():
    assert printed(*NAMES).splitlines() == SHOWN


def test_tables():
    for name, words in zip(NAMES, SHOWN, strict=True):
        table = Table(name, title=name)
        table.add_column(name)
        table.add_row(name, name)
        text = printed(table)
        assert text.count(words) == 5
        assert name == words or name not in text


def test_nothing_of_a_table_is_cut_where_it_is_narrow():
    table = open_table("figure", "test", title="two runs")
    names = ["precision_positive", "runs/mbdi-with-a-long-name"]
    for name in names:
        table.add_row(name, "Wilcoxon signed-rank test, of images")
    lines = printed(table, width=40).splitlines()
    assert max(map(len, lines)) <= 40
    cells = [cell.strip() for line in lines if line.startswith("│") for cell in line.split("│")[1:2]]
    assert "".join(cells) == "".join(names)
    lines = printed(table, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert sum(name in line for line in lines for name in names) == 2


def test_styles_are_left():
    text = printed("plain", force_terminal=True, color_system="standard")
    assert text == "plain\n"
    file = io.StringIO()
    open_console(file=file, force_terminal=True, color_system="standard").print("\x1b[1m", style="red")
    assert file.getvalue() == "\x1b[31m\\x1b[1m\x1b[0m\n"


def test_plain_tables():
    lines = table_lines(["image", "pixels"], [[name, "12"] for name in NAMES], ["pixels"])
    assert [line.split("  ")[0] for line in lines[2:]] == SHOWN
    assert {line[-8:] for line in lines[2:]} == {"      12"}
    assert lines[0].split() == ["image", "pixels"]
