"""Interrupted predictions: results are kept, and resuming ends like an uninterrupted run."""

import re
from pathlib import Path

import pytest

from mtlkit.cli._outcomes import sentence
from mtlkit.data import DataError
from mtlkit.errors import ExistsError, UnusableError
from mtlkit.inference import predict
from mtlkit.inference.progress import Progress, digest_of_records
from mtlkit.inference.torch_networks import digest_of_weights
from mtlkit.models import create_model


class Killed(BaseException):
    """Simulates the end of the process at any point."""


@pytest.fixture
def scans(image, tmp_path) -> Path:
    for i in range(5):
        image(f"scans/{i}.png", seed=i)
    return tmp_path / "scans"


@pytest.fixture
def kill_after(monkeypatch):
    """Lets a prediction write only this many rows."""
    whole = Progress.add_row

    def limit(count: int) -> None:
        def add_row(self, index, row) -> None:
            if len(self.rows) == count:
                raise Killed
            whole(self, index, row)

        monkeypatch.setattr(Progress, "add_row", add_row)

    return limit


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lines = found.pop(".mtlkit-files").splitlines()
    return found | {".mtlkit-files": b"".join(sorted(lines))}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_killed_and_resumed_is_as_if_undisturbed(lesion, scans, tmp_path, kill_after, monkeypatch, count):
    """Batches of two: the interruption comes within a batch and between batches."""
    whole = predict(lesion, scans, tmp_path / "whole", batch_size=2)
    kill_after(count)
    with pytest.raises(Killed):
        predict(lesion, scans, tmp_path / "out", batch_size=2)
    kept = [path.stat().st_ino for path in sorted((tmp_path / "out/masks").iterdir())[:count]]
    monkeypatch.undo()
    told = []
    resumed = predict(lesion, scans, tmp_path / "out", batch_size=2, resume=True, progress=lambda *of: told.append(of))
    assert resumed == whole
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert [path.stat().st_ino for path in sorted((tmp_path / "out/masks").iterdir())[:count]] == kept
    assert told[0] == (min(count // 2 * 2 + 2, 5), 5)
    again = predict(lesion, scans, tmp_path / "out", batch_size=2, resume=True)
    assert again == whole
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_interrupted_and_begun_again(lesion, scans, tmp_path, kill_after, monkeypatch):
    whole = predict(lesion, scans, tmp_path / "whole")
    predict(lesion, scans / "0.png", tmp_path / "out")
    kill_after(2)
    with pytest.raises(Killed):
        predict(lesion, scans, tmp_path / "out", force=True)
    assert (tmp_path / "out/predictions.csv").read_text().count("\n") == 2  # the row from before the interruption
    monkeypatch.undo()
    with pytest.raises(ExistsError) as error:
        predict(lesion, scans, tmp_path / "out")
    assert sentence(error.value).endswith("--resume continues it, --force starts again")
    assert predict(lesion, scans, tmp_path / "out", resume=True) == whole
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    kill_after(1)
    with pytest.raises(Killed):
        predict(lesion, [scans / "0.png", scans / "1.png"], scans / "within")
    monkeypatch.undo()
    assert predict(lesion, scans, tmp_path / "out", force=True) == whole  # results are not used as inputs
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    with pytest.raises(ValueError, match="resume, force: expected at most one of them"):
        predict(lesion, scans, tmp_path / "out", resume=True, force=True)


def test_nothing_else_is_resumed(lesion, scans, image, tmp_path, kill_after, monkeypatch):
    kill_after(2)
    with pytest.raises(Killed):
        predict(lesion, scans, tmp_path / "out", batch_size=2)
    monkeypatch.undo()
    before = files(tmp_path / "out")

    def refused(words: str, inputs: Path = scans, **options) -> None:
        with pytest.raises(DataError, match=words):
            predict(lesion, inputs, tmp_path / "out", resume=True, **{"batch_size": 2, **options})
        assert files(tmp_path / "out") == before

    refused(r"out: batch_size: expected 2, of the prediction to be continued, got 3$", batch_size=3)
    refused(r"out: max_pixels: expected 100000000, of the prediction to be continued, got 5000", max_pixels=5000)
    refused(r"out: inputs: expected", scans / "0.png")
    extra = image("scans/extra.png", seed=9)
    refused(r"out: images: expected 5, of the prediction to be continued, got 6")
    extra.unlink()
    first = (scans / "0.png").read_bytes()
    image("scans/0.png", seed=9)
    refused(r"0.png: has changed since it was predicted")
    (scans / "0.png").write_bytes(first)
    other = create_model("unet", encoder="resnet18", dim=2, num_classes=3).eval()
    assert digest_of_weights(other) != digest_of_weights(lesion.model)
    weights = {name: value.clone() for name, value in lesion.model.state_dict().items()}
    lesion.model.load_state_dict({name: value + 1 for name, value in weights.items()})
    refused(r"out: weights: expected '\w+', of the prediction to be continued")
    lesion.model.load_state_dict(weights)
    assert len(predict(lesion, scans, tmp_path / "out", batch_size=2, resume=True).rows) == 5


def test_a_broken_image_ends_a_prediction_that_can_be_resumed(lesion, scans, tmp_path):
    (scans / "3.png").write_bytes(b"broken")
    with pytest.raises(UnusableError) as error:
        predict(lesion, scans, tmp_path / "out", batch_size=1)
    words = r"3.png: cannot be read as an image .*; --skip-bad leaves it out, --resume continues from the next image$"
    assert re.search(words, sentence(error.value))
    whole = predict(lesion, scans, tmp_path / "whole", batch_size=1, skip_bad=True)
    resumed = predict(lesion, scans, tmp_path / "out", batch_size=1, skip_bad=True, resume=True)
    assert resumed == whole
    assert [len(part) for part in resumed] == [4, 1, 0]
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_lost_drawings_are_drawn_again(lesion, scans, tmp_path, kill_after, monkeypatch):
    whole = predict(lesion, scans, tmp_path / "whole")
    kill_after(4)
    with pytest.raises(Killed):
        predict(lesion, scans, tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "out/masks/1.png").unlink()
    assert predict(lesion, scans, tmp_path / "out", resume=True) == whole
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("line", ["[]", '{"record": 7, "print": "x", "row": {}}', '{"record": "x"}', "{}", "x"])
def test_a_damaged_journal_is_named(lesion, scans, tmp_path, kill_after, monkeypatch, line):
    kill_after(1)
    with pytest.raises(Killed):
        predict(lesion, scans, tmp_path / "out")
    monkeypatch.undo()
    journal = tmp_path / "out/.mtlkit-draft-rows"
    journal.write_text(journal.read_text() + line + "\n")
    with pytest.raises(DataError, match=re.escape(str(journal))):
        predict(lesion, scans, tmp_path / "out", resume=True)


def test_digests_tell_orders_and_frames(lesion, scans):
    from mtlkit.data import Record

    one, two = (Record(str(i), scans / f"{i}.png", -1, (), str(i)) for i in range(2))
    frame = Record("0", scans / "0.png", -1, (), "0", frame=1)
    assert len({digest_of_records(records) for records in ([one, two], [two, one], [one], [frame])}) == 4
