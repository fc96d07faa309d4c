"""A command whose output pipe is closed ends silently."""

import io
import subprocess
import sys

import pytest

from mtlkit._streams import READER_GONE, escape_unknown, reader_gone


def test_a_reader_that_is_there():
    assert not reader_gone()


@pytest.mark.parametrize(
    "command", [["-m", "mtlkit.info"], ["-c", "from mtlkit.cli import main; exit(main(['info']))"]]
)
def test_a_reader_that_has_gone(command, tmp_path):
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        process.stdout.close()
        assert process.wait() == READER_GONE
        assert process.stderr.read() == b""


def test_characters_that_the_encoding_lacks(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii"))
    escape_unknown()
    print("0.750 \u00b1 0.125", flush=True)
    assert output.getvalue() == b"0.750 \\xb1 0.125\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # has no encoding
    escape_unknown()
