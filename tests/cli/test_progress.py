"""Progress of a command: a bar or a count on a terminal, nothing elsewhere."""

import io
import sys

import pytest

from mtlkit.cli import _progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, stream: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with _progress.progress_shown("predicting") as progress:
        for done in (1, 2):
            progress(done, 2)
    return stream.getvalue()


def test_nothing_without_a_terminal(monkeypatch):
    assert shown(monkeypatch, io.StringIO()) == ""


def test_a_count_without_rich(monkeypatch):
    monkeypatch.setattr(_progress, "find_spec", lambda name: None)
    text = shown(monkeypatch, Terminal())
    assert [part for part in text.split("\r\x1b[K") if part] == ["predicting ...", "predicting 1/2", "predicting 2/2"]
    assert text.endswith("\r\x1b[K")


def test_the_count_vanishes_on_an_error(monkeypatch):
    monkeypatch.setattr(_progress, "find_spec", lambda name: None)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(KeyboardInterrupt), _progress.progress_shown("predicting"):
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_bar_with_rich(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert "predicting" in shown(monkeypatch, Terminal())
