"""`mtlkit doctor`: checks that the kernels compute correct results on this machine."""

import argparse
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlkit import info

if TYPE_CHECKING:
    from mtlkit.cli._examining import Finding

DESCRIPTION = """\
Calls every operator by every backend that this machine has, in every dtype, at a dozen sizes, and compares outputs and
gradients with the reference in float64: the CPU's kernels for each instruction set that the CPU has, and CUDA's and
Triton's on each GPU. The calls are made in a process of their own, so that a crashing kernel is reported too.
"""
EPILOG = """\
examples:
  mtlkit doctor                           under a minute on two cores; Triton's compiler takes longer on a GPU
  mtlkit doctor --quick                   three sizes of each
  mtlkit doctor --operator ss2d --operator norm_gate
  mtlkit doctor --backend cuda            without Triton, whose compiler takes most of the time on a GPU

each cell of the table is the largest error as a fraction of its tolerance; below 1 is correct

exit status: 0 all is right, 1 a call is wrong or the compiled module is damaged, 2 nothing was checked
"""
BACKENDS = tuple(name for name in info.BACKENDS if name != "reference")
FEW, ALL = 3, 1000  # samples of an operator
LEFT_OUT = 2  # the exit status where nothing was checked


def add_command(commands: Any) -> None:
    """Adds `doctor` to the command line."""
    command = commands.add_parser(
        "doctor",
        help="check the kernels on this machine against the reference",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--quick", action="store_true", help="check three sizes of each operator")
    add("--operator", action="append", metavar="NAME", help="check only this operator; may be given several times")
    add("--backend", action="append", choices=BACKENDS, help="check only this backend; may be given several times")
    add("--report", type=Path, metavar="FILE", help="where to write the report; default mtlkit-doctor-TIME.md here")
    add("--force", action="store_true", help="overwrite that file")
    command.set_defaults(run=run, command="doctor")


def run(options: argparse.Namespace) -> int:
    """`mtlkit doctor`."""
    from mtlkit._files import check_new, written_whole

    now = datetime.now(timezone.utc)
    file = options.report or Path(f"mtlkit-doctor-{now:%Y%m%d-%H%M%S}.md")
    check_new(file, force=options.force)
    torch, torch_error = info.load_torch()
    _, why_not = info.load_native()
    names = _chosen(options.operator) if torch is not None else []
    environment = info.report()
    print(environment, end="\n\n", flush=True)  # noqa: T201 - the command's own voice
    findings: list[Finding] = []
    incomplete = f"torch does not import: {torch_error}" if torch is None else ""
    interrupt: KeyboardInterrupt | None = None
    if torch is not None:
        try:
            for finding in _watched(names, FEW if options.quick else ALL, options.backend or ()):
                findings.append(finding)
        except OSError as error:
            incomplete = str(error)
        except KeyboardInterrupt as error:  # what was found so far is reported all the same
            incomplete, interrupt = "interrupted", error
    if not findings and not incomplete:
        incomplete = "no such backend serves a device here; mtlkit info says why"
    damaged = "" if why_not.endswith("not built") else why_not
    wrong = [finding for finding in findings if finding.fault]
    verdict = _verdict(len(findings), len(wrong), damaged, incomplete)
    text = [*results(findings), *([""] if findings else []), *faults(wrong), *verdict]
    print("\n".join(text))  # noqa: T201
    with written_whole(file, force=options.force) as draft:
        draft.write_text(report(now, environment, text, findings), encoding="utf-8")
    print(f"The report, to attach to an issue: {file}")  # noqa: T201
    if interrupt is not None:
        raise interrupt
    if wrong or damaged:
        return 1
    return LEFT_OUT if incomplete else 0


def _chosen(given: Sequence[str] | None) -> list[str]:
    """Names of the operators to check, all of them if none is given."""
    from mtlkit.cli._examining import operators

    known = operators()
    if unknown := [name for name in given or () if name not in known]:
        raise ValueError(f"--operator {unknown[0]}: there is no such operator; there are: {', '.join(known)}")
    return list(dict.fromkeys(given or known))


def _watched(names: Sequence[str], most: int, backends: Sequence[str]) -> Iterator["Finding"]:
    from mtlkit.cli._examining import examine_apart
    from mtlkit.cli._progress import progress_shown

    with progress_shown("checking") as show:
        for done, (finding, count) in enumerate(examine_apart(names, most, backends), 1):
            show(done, count)
            yield finding


def _verdict(count: int, wrong: int, damaged: str, incomplete: str) -> list[str]:
    """What came out, in sentences."""
    lines = []
    if damaged:
        lines.append(f"The compiled module is damaged: {damaged}")
    if incomplete:
        lines.append(f"{'Not all calls were made' if count else 'Nothing was checked'}: {incomplete}")
    if count:
        lines.append(f"{wrong} of {count:,} calls are wrong" if wrong else f"All {count:,} calls are right")
    return lines


# --- results as text --------------------------------------------------------------------------------------------------


def groups(findings: Sequence["Finding"]) -> dict[tuple[str, str, str], dict[str, list["Finding"]]]:
    """Findings by operator, device and backend, and then by dtype."""
    found: dict[tuple[str, str, str], dict[str, list[Finding]]] = {}
    for finding in findings:
        row = found.setdefault((finding.operator, finding.device, finding.backend), {})
        row.setdefault(finding.dtype, []).append(finding)
    return found


def results(findings: Sequence["Finding"]) -> list[str]:
    """The lines of the table: for each operator, device and backend the worst error of each dtype, and a time."""
    if not findings:
        return []
    from mtlkit.cli._console import table_lines
    from mtlkit.cli._examining import DTYPES

    rows = []
    for key, by_dtype in sorted(groups(findings).items(), key=lambda item: item[0][0]):
        seconds = sum(finding.seconds for finding in by_dtype.get("float32", ()))
        rows.append([*key, *(_cell(by_dtype.get(dtype, [])) for dtype in DTYPES), f"{1e3 * seconds:.1f}"])
    headings = ["operator", "device", "backend", *DTYPES, "ms"]
    note = "largest error as a fraction of its tolerance; ms: all float32 calls, forward and backward"
    return [note, "", *table_lines(headings, rows, [*DTYPES, "ms"])]


def _figures(findings: Sequence["Finding"]) -> tuple[int, float, float]:
    """How many are wrong, the largest error as a share of its bound, and the seconds of all."""
    wrong = sum(finding.fault is not None for finding in findings)
    share, seconds = max(finding.share for finding in findings), sum(finding.seconds for finding in findings)
    return wrong, round(share, 4) if share < float("inf") else share, round(seconds, 6)


def _cell(findings: Sequence["Finding"]) -> str:
    if not findings:
        return "-"
    wrong, share, _ = _figures(findings)
    return f"{wrong} of {len(findings)} WRONG" if wrong else f"{share:.2f}"


def faults(wrong: Sequence["Finding"]) -> list[str]:
    """A line for each call that is wrong, and an empty one behind them."""
    lines = [f"WRONG: {f.operator}, {f.device}, {f.backend}, {f.dtype}, {f.words}: {f.fault}" for f in wrong]
    return [*lines, ""] if lines else []


def report(now: datetime, environment: str, text: Sequence[str], findings: Sequence["Finding"]) -> str:
    """Markdown that an issue takes as text or as an attached file: what was printed, and the figures as JSON.

    The user's folder is `~` in it.
    """
    from mtlkit._files import plain

    data = {
        "format": "mtlkit doctor 1",
        "date": now.isoformat(timespec="seconds"),
        "columns": ["operator", "device", "backend", "dtype", "calls", "wrong", "error / bound", "seconds"],
        "rows": [
            [*key, dtype, len(some), *_figures(some)]
            for key, by_dtype in groups(findings).items()
            for dtype, some in by_dtype.items()
        ],
        "wrong": [finding._asdict() for finding in findings if finding.fault],
    }
    figures = json.dumps(plain(data))
    whole = f"""# mtlkit doctor, {now:%Y-%m-%d %H:%M} UTC

```
{environment}
```

```
{chr(10).join(text)}
```

<details><summary>figures</summary>

```json
{figures}
```

</details>
"""
    return whole.replace(str(Path.home()), "~")
