"""`mtlkit predict`: masks and classes of your own images."""

import argparse
import time
from pathlib import Path
from typing import Any

from mtlkit._extras import check_installed
from mtlkit._text import printable
from mtlkit.cli._calibrating import add_no_calibrate
from mtlkit.cli._cluster import add_ray
from mtlkit.cli._console import table_lines
from mtlkit.cli._limits import LESS_AT_ONCE, add_max_pixels
from mtlkit.cli._passes import add_passes
from mtlkit.cli._progress import progress_shown

DESCRIPTION = """\
Runs a trained network on images. For each it writes the mask and an overlay, in the size of the image, and a row of
class probabilities, area and gates.

RUN is the folder of a run, or a file that `mtlkit export` wrote. The file needs neither PyTorch nor the extra `train`,
only ONNX Runtime, Pillow and pydicom, and gives the same predictions.

INPUT is an image (PNG, JPEG, BMP, TIFF, DICOM; each frame of a DICOM file counts as an image) or a folder of images,
with subfolders. For a network of four-view mammograms it is a folder with the views of an exam, or a folder of such
folders; views are recognised by their DICOM tags, or by names such as L_CC.png. Missing views are left out and
reported.
"""
EPILOG = """\
examples:
  mtlkit predict runs/mbdi scan.dcm --out found                   one image
  mtlkit predict runs/btinet scans/ more/scan7.png --out found    all images of a folder, and one more
  mtlkit predict runs/csa scans/ --masks found/masks --out types  a network that needs the mask of the lesion
  mtlkit predict runs/mbdi scans/ --out found --resume            after a crash: continues where it stopped
  mtlkit predict mbdi.onnx scans/ --out found                     without PyTorch
  mtlkit predict runs/mbdi scans/ --out found --dicom-seg         DICOM Segmentations in found/dicom/seg/, too
  mtlkit predict runs/mbdi scans/ --out found --ray auto          over the GPUs of a Ray cluster
  mtlkit predict runs/mbdi scans/ --out found --tta               mean over the image and its mirror images
  mtlkit predict runs/hybrid exams/ --out birads                  exams/<name>/L_CC.dcm, L_MLO.dcm, R_CC.dcm, R_MLO.dcm

the folder: predictions.csv, masks/, overlays/, predictions.json (the network, and what was left out); dicom/seg/ and
dicom/sr/ with an object for each image or frame that is DICOM (extra `dicom`), in the study of its source

in predictions.csv, area_mm2 is empty where a file does not state the size of its pixels; gates of BTI-Net are failure
scores: the higher, the likelier the mask (gate_seg_*) or the class (gate_clf_*) is wrong; passes and seconds, with
--tta or --sliding-window, are how often the network ran for the image, and for how long

exit status: 0 predicted, 2 not predicted; one sentence on standard error says why
"""
SHOWN = 20


def add_command(commands: Any) -> None:
    """Adds `predict` to the command line."""
    command = commands.add_parser(
        "predict",
        help="predict masks and classes of your own images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("run_folder", type=Path, metavar="RUN", help="folder of a finished run, or net.onnx")
    add("inputs", type=Path, nargs="+", metavar="INPUT", help="an image or a folder")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write; it must be new")
    add("--masks", type=Path, metavar="FOLDER", help="masks with the names of the images, for csa_moe")
    add("--engine", metavar="NAME", help="torch for a run, onnxruntime for a file; by default chosen by RUN")
    add("--batch-size", type=int, metavar="N", help="images at once; default: as in training")
    add("--device", metavar="NAME", help="PyTorch device: cpu, cuda, ...; default: cuda if there is a GPU, else cpu")
    add_no_calibrate(command)
    add_passes(command)
    add("--skip-bad", action="store_true", help="leave out images that cannot be read, and list them")
    add("--dicom-seg", action="store_true", help="also write DICOM Segmentations, for images that are DICOM")
    add("--dicom-sr", action="store_true", help="also write DICOM measurement reports (TID 1500)")
    add_ray(add, "batches")
    add_max_pixels(command)
    either = command.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue an interrupted prediction")
    either.add_argument(
        "--force",
        action="store_true",
        help="start again; the files of the earlier prediction, and no others, are replaced",
    )
    command.set_defaults(run=run, command="predict", memory=LESS_AT_ONCE)


def run(options: argparse.Namespace) -> int:
    """`mtlkit predict`."""
    check_installed("`mtlkit predict`", "predict" if options.run_folder.suffix.lower() == ".onnx" else "train")
    from mtlkit.inference import predict
    from mtlkit.inference.networks import check_network, engine_of

    engine = engine_of(options.run_folder, options.engine)
    if options.dicom_seg or options.dicom_sr:
        check_installed("`mtlkit predict --dicom-seg` or `--dicom-sr`", "dicom")
    if engine != "torch" and options.device not in (None, "cpu"):
        raise ValueError(f"--device {options.device}: {options.run_folder} is an ONNX file, which runs only on the CPU")
    check_network(options.run_folder)  # before torch is loaded
    names = (
        "masks",
        "batch_size",
        "resume",
        "force",
        "skip_bad",
        "max_pixels",
        "dicom_seg",
        "dicom_sr",
        "sliding_window",
        "tta",
        "ray",
        "ray_cpus",
    )
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    settings["calibrate"] = not options.no_calibrate
    start = time.monotonic()
    with progress_shown("predicting") as progress:
        if options.ray is not None:
            settings["device"] = options.device
        elif engine == "torch":
            from mtlkit.cli.evaluate import usable_device

            settings["device"] = usable_device(options.device)
        found = predict(options.run_folder, options.inputs, options.out, progress=progress, **settings)
    each = (time.monotonic() - start) / len(found.rows)
    lines = _table(found.rows[:SHOWN])
    if len(found.rows) > SHOWN:
        lines.append(f"... and {len(found.rows) - SHOWN} more")
    lines += [*found.remarks, *(f"left out: {words}" for words in found.skipped)]
    lines.append(f"{options.out / 'predictions.csv'}: {len(found.rows)} predictions, {each:.2g} s each")
    print("\n".join(map(printable, lines)))  # noqa: T201 - the command's own voice
    return 0


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """The likeliest classes, their probabilities, and areas."""
    tasks = [name.removesuffix("_predicted") for name in rows[0] if name.endswith("_predicted")]
    titles = {"area_pixels": "pixels", "area_mm2": "mm²"}
    areas = [name for name in titles if any(row.get(name, "") != "" for row in rows)]
    cells = []
    for row in rows:
        cells.append([row["key"]])
        for task in tasks:
            best = row[f"{task}_predicted"]
            cells[-1].append(f"{best} {row[f'{task}_p_{best}']:.2f}" if best else "no view")
        cells[-1] += [row[name] if row[name] == "" else f"{row[name]:.0f}" for name in areas]
    headings = ["image" if "image" in rows[0] else "exam", *(task.replace("_", " ") for task in tasks)]
    return table_lines([*headings, *(titles[name] for name in areas)], cells, list(titles.values()))
