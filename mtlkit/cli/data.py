"""`mtlkit data`: checks a data set before training; writes phantoms to try things on."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlkit._extras import READING
from mtlkit.cli._limits import FEWER_PIXELS, add_max_pixels
from mtlkit.cli._progress import progress_bar

if TYPE_CHECKING:
    from mtlkit.data import Report

CHECK = """\
Reads every file of a data set once and reports what is missing or odd: missing masks, rows, tags and classes, files
that cannot be read, masks whose size differs from that of their image, duplicates, images of different groups that look
the same, several masks of one image (which are merged), and more. It changes nothing.

layouts:
  busi        {benign,malignant,normal}/benign (1).png, benign (1)_mask.png, ...
  busi_whu    {train,valid,test}/{img,gt}/ or {benign,malignant}/{images,masks}/
  ham10000    HAM10000_metadata.csv, HAM10000_images_*/, HAM10000_segmentations_*/
  brisc       classification_task/, segmentation_task/
  cmmd        CMMD/<patient>/**/*.dcm with the table of TOMPEI-CMMD or of CMMD
  folder      images/<class>/, masks/<class>/, groups.csv (optional; lists every image): for your own data
"""
CHECK_EXAMPLES = """\
examples:
  mtlkit data check Dataset_BUSI_with_GT
  mtlkit data check busi --classes benign,malignant --json report.json
  mtlkit data check busi --split runs/mbdi/split.json --thumbnails alike.html
  mtlkit data check TOMPEI-CMMD --birads 1,5

exit status: 0 no errors (there may be warnings), 1 errors, 2 not checked
"""
SYNTHESIZE = """\
Writes phantoms: synthetic images that are realistic enough for a network to learn from. Ultrasound images have masks
and the layout of BUSI; mammograms are DICOM files with BI-RADS categories in the layout of CMMD. Use them to try,
test and teach: no result on phantoms says anything about patients.
"""
SYNTHESIZE_EXAMPLES = """\
examples:
  mtlkit data synthesize ultrasound phantoms/busi
  mtlkit data synthesize mammography phantoms/cmmd --cases 50 --size 1024 --seed 7
  mtlkit data check phantoms/busi

exit status: 0 written, 2 not written; the folder is written completely or not at all
"""
DEFAULTS = {"ultrasound": (200, 256), "mammography": (100, 512)}


def add_commands(commands: Any) -> None:
    """Adds `data` and its subcommands to the command line."""
    command = commands.add_parser("data", help="check a data set, or write phantoms to try mtlkit on")
    actions = command.add_subparsers(title="commands", required=True, metavar="COMMAND")
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    check = actions.add_parser(
        "check", help="find what is missing or odd in a data set", description=CHECK, epilog=CHECK_EXAMPLES, **style
    )
    check.add_argument("folder", type=Path, metavar="FOLDER", help="the data set")
    check.add_argument("--layout", default="auto", metavar="NAME", help="one of those above; detected by default")
    check.add_argument("--classes", type=_names, metavar="A,B", help="the classes to use, in the order of their labels")
    check.add_argument("--birads", type=_numbers, metavar="1,5", help="the BI-RADS categories to use (cmmd)")
    add_max_pixels(check)
    check.add_argument(
        "--split", type=Path, metavar="FILE", help="a saved split: report images that look the same across its parts"
    )
    check.add_argument(
        "--thumbnails",
        type=Path,
        metavar="FILE",
        help="write an HTML page that shows images that look the same side by side",
    )
    check.add_argument("--all", action="store_true", help="list every finding, not only the first of each kind")
    check.add_argument("--json", type=Path, metavar="FILE", help="also write the findings to a file")
    check.add_argument("--force", action="store_true", help="overwrite those files")
    needs = ("train", READING)
    check.set_defaults(run=run_check, command="data check", needs=needs, memory=FEWER_PIXELS)

    synthesize = actions.add_parser(
        "synthesize", help="write phantoms", description=SYNTHESIZE, epilog=SYNTHESIZE_EXAMPLES, **style
    )
    synthesize.add_argument("kind", choices=list(DEFAULTS), help="what to draw")
    synthesize.add_argument("folder", type=Path, metavar="FOLDER", help="where to write; it must not exist yet")
    synthesize.add_argument(
        "--cases", type=int, metavar="N", help="images (default 200) or patients (mammography, default 100)"
    )
    synthesize.add_argument(
        "--size", type=int, metavar="PIXELS", help="height of the images; default 256, mammography 512"
    )
    synthesize.add_argument("--seed", type=int, default=0, help="the same seed writes the same files; default 0")
    synthesize.add_argument(
        "--force", action="store_true", help="replace the files that an earlier run wrote there, and no others"
    )
    synthesize.set_defaults(run=run_synthesize, command="data synthesize", needs=needs, memory="lower --size")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from None


# --- check ------------------------------------------------------------------------------------------------------------


def run_check(options: argparse.Namespace) -> int:
    """`mtlkit data check`."""
    from mtlkit._files import check_new, write_json, written_whole
    from mtlkit.data.duplicates import write_page
    from mtlkit.data.validate import check_dataset

    for path in (options.json, options.thumbnails):
        if path is not None:
            check_new(path, force=options.force)
    chosen = {"classes": options.classes, "birads": options.birads, "max_pixels": options.max_pixels}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    with progress_bar("reading") as progress:
        report = check_dataset(options.folder, options.layout, split=options.split, progress=progress, **chosen)
    _show(report, whole=options.all)
    if options.json is not None:
        write_json(options.json, report.to_dict(), force=options.force)
    if options.thumbnails is not None:
        limit = {name: value for name, value in chosen.items() if name == "max_pixels"}
        page = write_page(report.catalogue, report.near_duplicates, report.parts, **limit)
        with written_whole(options.thumbnails, force=options.force) as draft:
            draft.write_text(page, encoding="utf-8")
    return 0 if report.ok else 1


def _show(report: "Report", *, whole: bool) -> None:
    """Prints what was found, a paragraph for each kind."""
    from mtlkit.cli._console import open_console

    console = open_console(soft_wrap=True)
    catalogue = report.catalogue
    groups = len({record.group for record in catalogue.records})
    what = "patients" if catalogue.mammography else "images"
    console.print(f"{catalogue.root}: layout {catalogue.layout}, {len(catalogue)} {what} in {groups} groups")
    for name, count in catalogue.counts().items():
        console.print(f"  {count:>6}  {name}")
    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for (level, kind), findings in report.by_kind().items():
        console.print()
        console.print(f"{level}: {kind} ({len(findings)})", style=styles[level])
        shown = findings if whole else findings[:3]
        for finding in shown:
            console.print(f"  {finding}")
        if len(findings) > len(shown):
            console.print(f"  ... and {len(findings) - len(shown)} more: --all lists them")
    counts = {level: sum(f.level == level for f in report.findings) for level in styles}
    console.print()
    console.print(", ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items()))


# --- synthesize -------------------------------------------------------------------------------------------------------


def run_synthesize(options: argparse.Namespace) -> int:
    """`mtlkit data synthesize`."""
    from mtlkit.cli._console import open_console
    from mtlkit.data.synthetic import synthesize_mammography, synthesize_ultrasound

    write = {"ultrasound": synthesize_ultrasound, "mammography": synthesize_mammography}[options.kind]
    cases, size = DEFAULTS[options.kind]
    cases = cases if options.cases is None else options.cases
    size = size if options.size is None else options.size
    with progress_bar("drawing") as progress:
        write(options.folder, cases, size, options.seed, force=options.force, progress=progress)
    open_console(soft_wrap=True).print(f"{options.folder}: {cases} cases of {options.kind} phantoms")
    return 0
