"""The documentation builds without a warning, works offline, and has every public name, page and link."""

import html.parser
import importlib
import importlib.util
import re
import sys
from functools import partial
from operator import attrgetter
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import yaml

import mtlkit

PAGES = ("getting_started.md", "concepts/ss2d.md", "concepts/scan_orders.md", "concepts/task_interaction.md")


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"site_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


class Links(html.parser.HTMLParser):
    """The links of a page, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []

    def handle_starttag(self, tag, attrs) -> None:
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif attrs.get("src"):
            self.loaded.append(attrs["src"])
        elif tag == "link" and attrs.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(attrs["href"])


def read(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text())
    return links


def broken_links(site: Path, pages: dict[Path, Links]) -> list[str]:
    found = []
    for page, links in pages.items():
        for link in {*links.links, *links.loaded}:
            target, anchor = urldefrag(unquote(link))
            if re.match(r"[a-z]+:", target):
                continue
            path = (page.parent / target).resolve() if target else page
            path = path / "index.html" if path.is_dir() else path
            if not path.is_file() or (anchor and path in pages and anchor not in pages[path].anchors | {"__toc"}):
                found.append(f"{page.relative_to(site)}: {link}")
    return found


def public_names() -> set[str]:
    """The public names of every module, by their first path; modules are pages."""
    hooks = load(Path(__file__).parents[1] / "docs" / "_site" / "hooks.py")
    names = set()
    for module in hooks.MODULES:
        owner = attrgetter(module.partition(".")[2])(mtlkit) if module != "mtlkit" else mtlkit
        exported = hooks.ONLY.get(module) or owner.__all__
        names |= {f"{module}.{name}" for name in exported}
    return names - set(hooks.MODULES)


def test_site_builds(root, run_python, tmp_path):
    """One test, because the build takes seven seconds: it checks links, names and loaded files of one result."""
    configuration = str(root / "mkdocs.yml")
    process = run_python("-m", "mkdocs", "build", "--strict", "-q", "-f", configuration, "-d", str(tmp_path))
    assert process.returncode == 0, process.stderr
    pages = {path: read(path) for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 30

    loaded = {link for links in pages.values() for link in links.loaded}
    assert not [link for link in loaded if re.match(r"(https?:)?//", link)]
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text()), style.name

    assert not broken_links(tmp_path, pages)

    anchors = set().union(*(links.anchors for path, links in pages.items() if path.parent.name == "api"))
    assert not public_names() - anchors

    commands = {
        f"mtlkit-{name.replace(' ', '-')}" for name in load(root / "docs" / "_site" / "hooks.py").command_helps()
    }
    assert {"mtlkit-train", "mtlkit-data-check"} <= commands <= pages[tmp_path / "command_line.html"].anchors


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top"><a href="b.html#there">b</a><a href="b.html#gone">b</a>')
    (tmp_path / "b.html").write_text('<p id="there"><img src="gone.png"><a href="#there"></a><a href="https://x.org">')
    pages = {path: read(path) for path in tmp_path.glob("*.html")}
    assert sorted(broken_links(tmp_path, pages)) == ["a.html: b.html#gone", "b.html: gone.png"]


def test_every_public_module_has_a_page(root):
    modules = load(root / "docs" / "_site" / "hooks.py").MODULES
    public = {f"mtlkit.{name}" for name in mtlkit.__all__ if type(getattr(mtlkit, name)) is type(mtlkit)}
    assert public <= set(modules)


def test_links_lead_to_the_same_place_in_the_site(root):
    hooks = load(root / "docs" / "_site" / "hooks.py")
    config = type("Config", (), {"extra": {}})
    page = type("Page", (), {"file": type("File", (), {"src_uri": "concepts/ss2d.md"})})
    resolve = partial(hooks.resolved, source="docs/concepts/ss2d.md", page=page, config=config)
    assert resolve("../deploy.md#platforms")[0] == "../deploy.md#platforms"
    assert resolve("../../CHANGELOG.md")[0] == "../changelog.md"
    assert resolve("../../examples")[0] == "../gallery.md"
    assert resolve("../../examples/c/scan.c")[0] == "../gallery.md"
    assert resolve("../../benchmarks/results/zen4.png")[0] == "../pictures/benchmarks_results_zen4.png"
    assert resolve("../../mtlkit/ops.py")[0] is None
    assert resolve("https://example.org/x")[0] == "https://example.org/x"
    config.extra["sources"] = "https://example.org/mtlkit"
    assert resolve("../../mtlkit/ops.py")[0] == "https://example.org/mtlkit/blob/main/mtlkit/ops.py"


@pytest.mark.parametrize("page", PAGES)
def test_code_of_pages_runs(root, page):
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / page).read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_figures_are_those_that_the_script_draws(root, tmp_path):
    draw = load(root / "docs" / "figures" / "draw.py")
    draw.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (root / "docs" / "figures").glob("*.svg")}
    for name in drawn:
        ours, theirs = ((folder / name).read_text() for folder in (tmp_path, root / "docs" / "figures"))
        assert re.findall(r">([^<]+)</text>", ours) == re.findall(r">([^<]+)</text>", theirs)
        if name.endswith("_dark.svg"):
            assert draw.SCHEMES["_dark"].ground in ours
    pages = "".join(path.read_text() for path in (root / "docs").rglob("*.md"))
    assert {name for name in drawn if not name.endswith("_dark.svg")} == set(re.findall(r"figures/(\w+\.svg)", pages))


def test_workflow_builds_what_make_builds(root):
    workflow = yaml.safe_load((root / ".github" / "workflows" / "docs.yml").read_text())
    commands = [step.get("run", "") for step in workflow["jobs"]["build"]["steps"]]
    assert any(command.startswith("make docs") for command in commands)
    assert "-m mkdocs build --strict" in (root / "Makefile").read_text()
