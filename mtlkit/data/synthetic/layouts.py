"""Phantoms in every layout: small data sets for a trial run before you have the real one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mtlkit._output import OutputFolder, new_folder
from mtlkit.data.layouts import brisc, busi_whu, ham10000
from mtlkit.data.synthetic._fields import check_options
from mtlkit.data.synthetic.mammography import synthesize_mammography
from mtlkit.data.synthetic.ultrasound import MARK, draw_ultrasound, synthesize_ultrasound

__all__ = ["synthesize_layout"]

Drawn = tuple[str, int, np.ndarray, np.ndarray]  # class, number within the class, image and mask


def synthesize_layout(layout: str, path: str | Path, cases: int, size: int = 96, seed: int = 0) -> None:
    """Writes phantoms in the layout of a public data set.

    Only in "busi" and "cmmd" do they look like the data set. In the other layouts they are ultrasound images whose
    classes alternate between benign and malignant, useful only to check that everything runs.

    Args:
        layout: "busi" (also for "folder"), "busi_whu", "ham10000", "brisc" or "cmmd".
        path: folder to create.
        cases: number of images or exams, at least twice the number of classes.
        size: height of the images in pixels, 64 to 4096.
        seed: random seed; the same seed gives the same files.

    Raises:
        ValueError: there is no such layout, or an option is out of range.
        DataError: `path` exists already, or cannot be written.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import open_dataset, synthesize_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_layout("brisc", f"{folder}/brisc", cases=16, size=64)
        ...     open_dataset(f"{folder}/brisc").counts()
        {'glioma': 4, 'meningioma': 4, 'pituitary': 4, 'no_tumor': 4}
    """
    if layout in ("busi", "folder"):
        synthesize_ultrasound(path, cases, size, seed)
    elif layout == "cmmd":
        synthesize_mammography(path, cases, size, seed)
    elif layout in _WRITERS:
        classes, write = _WRITERS[layout]
        check_options(cases, size, seed, least_cases=2 * len(classes))
        with new_folder(path, "phantoms") as draft:
            write(draft, _draw(classes, cases, size, seed))
            values = {"phantoms": "ultrasound", "layout": layout, "cases": cases, "size": size, "seed": seed}
            draft.write_json(MARK, values)
    else:
        known = ("busi", "folder", "cmmd", *_WRITERS)
        raise ValueError(f"layout: expected one of {', '.join(known)}, got {layout!r}")


def _draw(classes: tuple[str, ...], cases: int, size: int, seed: int) -> Iterator[Drawn]:
    """The classes in alternation."""
    for case in range(cases):
        number = case % len(classes)
        kind = "normal" if classes[number] == "no_tumor" else ("benign", "malignant")[number % 2]
        image, mask = draw_ultrasound(kind, size, np.random.default_rng([seed, case]))
        yield classes[number], case // len(classes), image, mask


def _save(draft: OutputFolder, name: str, pixels: np.ndarray) -> None:
    with draft.file(name) as file:
        Image.fromarray(pixels).save(file)


def _busi_whu(draft: OutputFolder, phantoms: Iterator[Drawn]) -> None:
    for kind, number, image, mask in phantoms:
        part = {3: "valid", 4: "test"}.get(number % 5, "train")
        _save(draft, f"{part}/img/{kind}_{number:04d}.bmp", image)
        _save(draft, f"{part}/gt/{kind}_{number:04d}_anno.bmp", mask)


def _ham10000(draft: OutputFolder, phantoms: Iterator[Drawn]) -> None:
    rows = ["lesion_id,image_id,dx"]
    for count, (kind, number, image, mask) in enumerate(phantoms):
        name = f"ISIC_{count:07d}"
        _save(draft, f"HAM10000_images_part_1/{name}.jpg", image)
        _save(draft, f"HAM10000_segmentations_lesion_tschandl/{name}_segmentation.png", mask)
        rows.append(f"HAM_{kind}_{number:04d},{name},{kind}")
    draft.write_text("HAM10000_metadata.csv", "\n".join(rows) + "\n")


def _brisc(draft: OutputFolder, phantoms: Iterator[Drawn]) -> None:
    for count, (kind, number, image, mask) in enumerate(phantoms):
        part = "test" if number % 4 == 3 else "train"
        name = f"brisc2025_{part}_{count:05d}_{kind[:2]}_ax_t1"
        _save(draft, f"classification_task/{part}/{kind}/{name}.jpg", image)
        if mask.any():
            _save(draft, f"segmentation_task/{part}/masks/{name}.png", mask)


_WRITERS = {
    "busi_whu": (busi_whu.CLASSES, _busi_whu),
    "ham10000": (ham10000.CLASSES, _ham10000),
    "brisc": (brisc.CLASSES, _brisc),
}
