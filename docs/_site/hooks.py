"""What MkDocs asks for while it builds the site: the pages that are made of other files, and links that leave docs/.

README.md, CHANGELOG.md, CONTRIBUTING.md, the results of the benchmarks, the pictures of the examples and the public
names of mtlkit become pages here, so that nothing is written twice.
"""

import argparse
import json
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
FOLDERS = {"examples": "gallery.md", "benchmarks/results": "benchmarks.md", "docs": "index.md"}
PICTURES = ("benchmarks/results/*.png", "benchmarks/results/*.svg", "examples/*.png")

# public module -> what its page says of it in the overview
MODULES = {
    "mtlkit": "Accelerate a model, export it, optimize it; the names at the top of the package.",
    "mtlkit.ops": "Operators: scans, convolutions, normalisation and task interaction as functions of tensors.",
    "mtlkit.ops.orders": "Paths of a scan through an image or a volume.",
    "mtlkit.nn": "Layers that drop into a network.",
    "mtlkit.models": "Whole networks by name, checkpoints, parameter and operation counts.",
    "mtlkit.data": "Data sets, checks, splits, augmentation, and phantoms.",
    "mtlkit.losses": "Losses of the papers.",
    "mtlkit.metrics": "Metrics of masks, classes and failure scores.",
    "mtlkit.training": "Recipes, runs, cross-validation and ablations.",
    "mtlkit.evaluation": "Evaluation of runs, intervals and comparisons.",
    "mtlkit.inference": "Prediction from a run or an ONNX file.",
    "mtlkit.deploy": "ONNX export, 8 bits, and the C library.",
    "mtlkit.compat": "The import names of mamba-ssm, causal-conv1d and VMamba's extensions.",
    "mtlkit.errors": "Errors that mtlkit raises.",
    "mtlkit.info": "What is active on this machine, and why the rest is not.",
    "mtlkit.testing": "Named shapes and the tolerance policy that tests and benchmarks share.",
}
PARTS = {"mtlkit.data": ("mtlkit.data.synthetic",)}  # public modules that have no page of their own
ONLY = {"mtlkit.info": ["report"]}  # the rest is the report's


# --- configuration ----------------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation: the reference, pages without a place, and the sources if the repository is known."""
    written = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    others = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in written]
    entries = ["api/index.md", "command_line.md", *(f"api/{name}.md" for name in MODULES)]
    for section in config.nav or []:
        if "Reference" in section:
            section["Reference"] = entries
        elif "Guides" in section:
            section["Guides"] = [*section["Guides"], *others]
    server, repository = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    if server and repository:  # set by GitHub's workflows; theme's repo_url would ask GitHub for stars at every view
        config.extra["sources"] = f"{server}/{repository}"
        config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": config.extra["sources"]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is made of files outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "write_an_operator.md", content=operator_guide()))
    files.append(File.generated(config, "command_line.md", content=command_page()))
    files.append(File.generated(config, "benchmarks.md", content=benchmark_page()))
    for name, content in api_pages().items():
        files.append(File.generated(config, f"api/{name}.md", content=content))
    for pattern in PICTURES:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, site_path(path.relative_to(ROOT).as_posix()), abs_src_path=str(path)))
    return files


def site_path(path: str) -> str:
    """Where the site has a picture of the repository."""
    return f"pictures/{path.replace('/', '_')}"


# --- links ------------------------------------------------------------------------------------------------------------


LINK = re.compile(r"(?P<open>!?\[(?:[^][]|\[[^][]*\])*\]\()(?P<target>[^()\s]+)\)")
HTML = re.compile(r"(?P<open>\b(?:src|srcset|href)=\")(?P<target>[^\"\s]+)(?P<close>\")")
FENCE = re.compile(r"(^[ ]*```.*?^[ ]*```[ ]*$)", re.MULTILINE | re.DOTALL)


SCRIPT = re.compile(r"^\[`(?P<name>\w+\.py)`\]\(\S+\)$", re.MULTILINE)


def listing(match: re.Match[str]) -> str:
    """A script of the gallery, folded, in place of a line that only links to it."""
    code = (ROOT / "examples" / match["name"]).read_text().replace("\n", "\n    ")
    return f'??? example "{match["name"]}"\n\n    ```python\n    {code.rstrip()}\n    ```'


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that are right on GitHub become right in the site; drawn figures get their dark twin."""
    source = source_of(page.file.src_uri)
    if page.file.src_uri == "gallery.md":
        markdown = SCRIPT.sub(listing, markdown)
    parts = FENCE.split(markdown)  # code between fences stays as it is
    for i in range(0, len(parts), 2):
        text = LINK.sub(lambda match: rewritten(match, source, page, config, files), parts[i])
        parts[i] = HTML.sub(
            lambda match: match["open"] + (resolved(match["target"], source, page, config)[0] or "#") + match["close"],
            text,
        )
    return "".join(parts)


def source_of(page: str) -> str:
    """The file of the repository that a page is made of."""
    sources = {target: source for source, target in PAGES.items()}
    sources |= {"write_an_operator.md": "CONTRIBUTING.md", "benchmarks.md": "benchmarks/page"}
    return sources.get(page, f"docs/{page}")


def rewritten(match: re.Match[str], source: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A Markdown link, or its text alone where it leads to a file that the site does not have."""
    target, path = resolved(match["target"], source, page, config)
    if target is None:
        return match["open"][1:-2]
    dark = path.replace(".svg", "_dark.svg")
    if match["open"].startswith("!") and dark != path and files.get_file_from_path(dark.removeprefix("docs/")):
        twin = target.replace(".svg", "_dark.svg")
        return f"{match['open']}{target}#only-light)\n{match['open']}{twin}#only-dark)"
    return f"{match['open']}{target})"


def resolved(target: str, source: str, page: Page, config: MkDocsConfig) -> tuple[str | None, str]:
    """A target as the page must write it, None if nothing is there; and its path in the repository."""
    if re.match(r"[a-z]+:|#", target):
        return target, target
    path, _, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if path in FOLDERS or path in PAGES:
        found = PAGES.get(path) or FOLDERS[path]
    elif path.startswith("docs/"):
        found = path.removeprefix("docs/")
    elif any(Path(path).match(pattern) for pattern in PICTURES):
        found = site_path(path)
    elif path.startswith("examples/") and page.file.src_uri != "gallery.md":
        found = "gallery.md"
    elif (ROOT / path).exists():
        sources = config.extra.get("sources")
        return (f"{sources}/blob/main/{path}" if sources else None), path
    else:
        return target, path  # MkDocs says that it is missing
    here = posixpath.dirname(page.file.src_uri) or "."
    return posixpath.relpath(found, here) + (f"#{anchor}" if anchor else ""), path


# --- pages ------------------------------------------------------------------------------------------------------------


def operator_guide() -> str:
    """The sections of CONTRIBUTING.md on operators and style."""
    sections = re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    wanted = {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}
    return f"# Write an operator\n\n{wanted['Add an operator']}\n## Style\n\n{wanted['Style']}"


def command_page() -> str:
    """The help of every command."""
    sections = [f"## mtlkit {name}\n\n```text\n{text}```\n" for name, text in sorted(command_helps().items())]
    return "# Command line\n\n`mtlkit help COMMAND` prints the same in a terminal.\n\n" + "\n".join(sections)


def command_helps() -> dict[str, str]:
    """Of each command that has options of its own, by its words; mtlkit's parsers need no torch."""
    with mock.patch.object(sys, "path", [str(ROOT), *sys.path]), mock.patch.dict(os.environ, COLUMNS="100"):
        from mtlkit import cli

        return dict(helps_of(cli.parser(), ()))


def helps_of(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Those of a parser and of its subcommands."""
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not choices:
        yield " ".join(words), parser.format_help()
    for name, command in (entry for found in choices for entry in found.items()):
        yield from helps_of(command, (*words, name))


def benchmark_page() -> str:
    """Every row of benchmarks/results, a section for each machine."""
    lines = [
        "# Benchmarks",
        "",
        "`make bench` checks every operator against its reference, then times it next to the alternatives, and writes",
        "these results from a quiet machine. Times are medians; errors are relative to the reference in float64.",
        "",
    ]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        lines += machine_section(path)
    return "\n".join(lines)


def machine_section(path: Path) -> list[str]:
    """One file of results: the machine, its chart, a table for each operator."""
    document = json.loads(path.read_text())
    machine, versions = document["machine"], document["versions"]
    name = machine.get("microarchitecture") or machine.get("name") or path.stem
    lines = [
        f"## {name}",
        "",
        f"{machine.get('cpu', name)}, {machine.get('threads', '?')} threads, {machine.get('isa', '')}; "
        f"torch {versions['torch']}; {document['date'][:10]}.",
        "",
    ]
    if path.with_suffix(".png").exists():
        lines += [f"![State updates per second of SS2D on {name}](results/{path.stem}.png)", ""]
    for op in sorted({row["op"] for row in document["rows"]}):
        rows = [row for row in document["rows"] if row["op"] == op]
        lines += [
            f'??? note "{op}: {len(rows)} rows"',
            "",
            "    | shape | dtype | direction | provider | time | error |",
        ]
        lines += ["    |---|---|---|---|---:|---:|"]
        for row in rows:
            cells = (row["shape"], row["dtype"], row["direction"].replace("_", " + "), row["provider"])
            lines.append(f"    | {' | '.join(cells)} | {duration(row['median_s'])} | {row['relative_error']:.0e} |")
        lines.append("")
    return lines


def duration(seconds: float) -> str:
    """Three digits, in s, ms or µs."""
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    return f"{seconds * scale:.3g} {unit}"


# --- the API ----------------------------------------------------------------------------------------------------------


def api_pages() -> dict[str, str]:
    """A page for each public module, with every public name; and the overview."""
    package = griffe.load("mtlkit", search_paths=[ROOT], try_relative_path=False)
    pages = {name: api_page(package, name) for name in MODULES}
    rows = "\n".join(f"| [`{name}`]({name}.md) | {what} |" for name, what in MODULES.items())
    pages["index"] = (
        f"# Reference\n\nEvery example on these pages runs in the tests.\n\n| module | what |\n|---|---|\n{rows}\n"
    )
    return pages


def public_names(module: griffe.Object | griffe.Alias) -> list[str]:
    """Those of `__all__`; of a module without it, the functions and classes that it defines."""
    if module.path in ONLY:
        return ONLY[module.path]
    if module.exports is not None:
        return [str(name) for name in module.exports]
    return [
        name
        for name, member in module.members.items()
        if not name.startswith("_") and not member.is_alias and (member.is_function or member.is_class)
    ]


def api_page(package: griffe.Object | griffe.Alias, name: str) -> str:
    """A table of the names, then each of them with its docstring; a name that another page has is linked."""
    table, body = [], []
    for part in (name, *PARTS.get(name, ())):
        owner = package if part == "mtlkit" else package[part.removeprefix("mtlkit.")]
        for member in public_names(owner):
            path = f"{part}.{member}"
            if path in MODULES:
                table.append((f"[`{member}`]({path}.md)", MODULES[path]))
            elif any(member in public_names(package[other.removeprefix("mtlkit.")]) for other in earlier(name, part)):
                continue  # of a part of the package that names it, too
            else:
                table.append((f"[`{member}`](#{path})", summary(owner[member])))
                body.append(f"::: {path}\n")
    rows = "\n".join(f"| {link} | {what} |" for link, what in table)
    options = ("members: false", "show_root_heading: false", "show_root_toc_entry: false")
    intro = f"::: {name}\n    options:\n" + "".join(f"      {option}\n" for option in options)
    return f"# {name}\n\n{intro}\n| name | what |\n|---|---|\n{rows}\n\n" + "\n".join(body)


def earlier(name: str, part: str) -> tuple[str, ...]:
    """The module of the page, for the names of its parts."""
    return (name,) if part != name else ()


def summary(member: griffe.Object | griffe.Alias) -> str:
    """The first sentence of the docstring, fit for a cell."""
    member = member.final_target if isinstance(member, griffe.Alias) else member
    if member.docstring is None:
        return "constant" if member.is_attribute else ""
    first = " ".join(member.docstring.value.split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) ", first)[0].rstrip(":").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
