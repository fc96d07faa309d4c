"""The list of written files: which files mtlkit owns, and which became the user's."""

import pytest

from mtlkit._owned import LIST, FileList, contents
from mtlkit.errors import ChangedError, OccupiedError


@pytest.fixture
def listed(tmp_path) -> FileList:
    """A folder with one file, listed and written."""
    files = FileList.create(tmp_path, "run")
    (tmp_path / "a.txt").write_text("one")
    files.add("a.txt", contents(tmp_path / "a.txt"))
    return files


def test_a_list_is_read_as_it_was_written(listed):
    again = FileList.read(listed.folder)
    assert again.kind == "run"
    assert again.files == listed.files
    assert again.present("a.txt") == contents(listed.folder / "a.txt")
    assert FileList.read(listed.folder / "nowhere") is None


@pytest.mark.parametrize("text", ["two", "longer than before"])
def test_a_changed_file_is_not_owned(listed, text):
    (listed.folder / "a.txt").write_text(text)
    again = FileList.read(listed.folder)
    assert again.present("a.txt") is None
    with pytest.raises(ChangedError, match=r"a\.txt: has been changed since mtlkit wrote it"):
        again.check_owned("a.txt", listed.folder)


def test_a_file_of_the_user_is_not_owned(listed):
    (listed.folder / "notes.txt").write_text("mine")
    with pytest.raises(OccupiedError, match=r"notes\.txt: was not written by mtlkit"):
        listed.check_owned("notes.txt", listed.folder)
    listed.check_owned("free.txt", listed.folder)


def test_a_link_is_not_owned(listed, tmp_path):
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    assert FileList.read(listed.folder).present("a.txt") is None


def test_half_a_line_is_left_out_and_written_over(listed):
    with (listed.folder / LIST).open("ab") as file:
        file.write(b'{"file": "half')
    again = FileList.read(listed.folder)
    assert set(again.files) == {"a.txt"}
    again.add_draft("b.txt")
    assert set(FileList.read(listed.folder).files) == {"a.txt", "b.txt"}


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", ""])
def test_a_name_outside_is_refused(listed, name):
    with pytest.raises(ValueError, match="^" + name.replace(".", r"\.")):
        listed.add_draft(name)
