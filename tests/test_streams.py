"""A command whose reader has gone ends quietly."""

import subprocess
import sys

import pytest

from mtlkit._streams import READER_GONE, reader_gone


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
