"""The README's picture and speed table, from the files in results/; each ratio is a range over machines."""

import json

import machine
from comparisons import COMPARISONS, Document, Figure, in_unit

RESULTS = machine.ROOT / "benchmarks" / "results"
README = machine.ROOT / "README.md"
CHART = "<!-- chart: begin -->", "<!-- chart: end -->"
TABLE = "<!-- measured: begin -->", "<!-- measured: end -->"


def documents() -> list[Document]:
    """The documents of runs on a CPU, the fastest machine first."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    found = [document for document in found if "gpu" not in document]
    return sorted(found, key=lambda document: -document["yardstick"].get("polynomial_updates_per_s", 0))


def chart(found: list[Document]) -> str:
    """The README's first sentence about speed, and the picture below it."""

    def ratio(name: str) -> str:
        figures = [COMPARISONS[name].of(document) for document in found]
        return span([figure for figure in figures if figure is not None])

    kinds = [machine.kind(document["machine"]) for document in found]
    picture = f"benchmarks/results/{machine.stem(found[0]['machine'])}.png"
    return (
        f"**On a CPU, the scan is {ratio('ss2d/reference')} as fast as the PyTorch loop that it replaces, and "
        f"{ratio('ss2d+b/reference')} with gradients; a MedMamba-T in plain PyTorch, accelerated in one line, is "
        f"{ratio('plain_medmamba_t/plain')} as fast.**\n\n"
        f"![State updates per second of SS2D, forward and with backward, on {kinds[0]}]({picture})"
    )


def section(found: list[Document]) -> str:
    """The list of machines and the table."""
    kinds = [machine.kind(document["machine"]) for document in found]
    lines = [
        *(f"- {_machine_line(document)}" for document in found),
        "",
        "SS2D on a 56 x 56 map with 96 channels and 16 states, one image; task interaction with 8 images; float32.",
        "Nx is N times as fast; ratios are ranges over machines; times and rates below a machine's name are mtlkit's.",
        "",
        f"| what | compared with | ratio | {' | '.join(kinds)} |",
        f"|---|---|---{'|---' * len(kinds)}|",
    ]
    for comparison in COMPARISONS.values():
        if not comparison.readme:
            continue
        figures = [comparison.of(document) for document in found]
        present = [figure for figure in figures if figure is not None]
        if present:
            cells = (figure.ours if figure else "" for figure in figures)
            lines.append(f"| {comparison.what.strip()} | {peer(present)} | {span(present)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def peer(figures: list[Figure]) -> str:
    """What the row is compared with, without numbers, which differ between machines."""
    words = figures[0].other.split()
    return " ".join(words[:-2])


def span(figures: list[Figure]) -> str:
    """The ratio, or the lowest and the highest one."""
    unit = figures[0].unit
    least, most = (in_unit(bound(figure.ratio for figure in figures), unit) for bound in (min, max))
    return least if least == most else f"{least.removesuffix(f' {unit}')} to {most}"


def _machine_line(document: Document) -> str:
    m = document["machine"]
    bits = m.get("avx512_bits")
    width = f", AVX-512 of {bits} bits a cycle" if bits and not machine.limited(m) else ""
    return (
        f"{machine.kind(m)}: {m['cpu']}{width}, {m['threads']} threads, torch {document['versions']['torch']}, "
        f"{document['date'][:10]} ([all rows](benchmarks/results/{machine.stem(m)}.json))"
    )


def update() -> None:
    """Writes the picture and the table into the README."""
    found, text = documents(), README.read_text()
    for (begin, end), content in ((CHART, chart(found)), (TABLE, section(found))):
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"
    README.write_text(text)
