"""The documentation: its commands parse, its Python runs, its links lead somewhere, it builds."""

import argparse
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from limbeck._source import outline
from limbeck.cli import COMMANDS, main
from limbeck.cli._parser import Parser
from limbeck.errors import UsageError
from limbeck.registry import cards

pytestmark = pytest.mark.xdist_group("docs")

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(
    r"^(<!-- not run: .+ -->\n)?```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


class Block(NamedTuple):
    skipped: bool
    language: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for reason, language, more, text in FENCE.findall(page.read_text("utf-8")):
        title = re.search(r'title="(.+?)"', more)
        yield Block(bool(reason), language, title[1] if title else "", text)


def commands(page: Path) -> list[list[str]]:
    """The words after `limbeck` of each command in a block, or in backticks with arguments."""
    text = page.read_text("utf-8")
    shown = [b.text.replace("\\\n", " ") for b in blocks(page) if b.language in ("bash", "console")]
    lines = "".join(shown).splitlines()
    lines += re.findall(r"`((?:\S+ )*?limbeck [^\s`]+ [^`]+)`", FENCE.sub("", text))
    launch = r"(?:limbeck|(?:torchrun|accelerate launch) .*-m limbeck) (.+)"
    found = (re.fullmatch(launch, line) for line in lines)
    return [shlex.split(match[1]) for match in found if match]


@pytest.fixture
def folder(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that a page shows by a title, and a method of one's own."""
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text, "utf-8")
    shutil.copy(ROOT / "examples" / "new_method.py", tmp_path / "my_method.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Parsed(Exception):
    pass


@by_page
def test_commands_parse(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = Parser.parse_args

    def only_parse(self: Parser, *args: Any) -> argparse.Namespace:
        parse(self, *args)
        raise Parsed

    monkeypatch.setattr(Parser, "parse_args", only_parse)
    for words in commands(page):
        module, _, function = COMMANDS[words[0]][0].partition(":")
        with pytest.raises(Parsed):
            getattr(importlib.import_module(module), function)(words[1:])


@by_page
def test_what_is_listed_and_shown_is_there(
    page: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands(page):
        if words[0] in ("list", "show") and "--modules" not in words:
            assert main(words) == 0, words
            assert len(capsys.readouterr().out.splitlines()) > 1, f"nothing for {words}"


def test_there_are_commands_of_every_kind_to_parse() -> None:
    kinds = {words[0] for page in PAGES for words in commands(page)}
    assert set(COMMANDS) - {"completion", "speed", "report"} <= kinds


def test_a_wrong_command_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nlimbeck run kd --teach \\\n    x\n```\n", "utf-8")
    assert commands(page) == [["run", "kd", "--teach", "x"]]
    with pytest.raises(UsageError, match="--teach"):
        importlib.import_module("limbeck.cli.running").run(commands(page)[0][1:])


@by_page
def test_python_runs(page: Path, folder: Path) -> None:
    texts = [b.text for b in blocks(page) if b.language == "python" and not (b.skipped or b.title)]
    if not texts:
        return
    (folder / "page.py").write_text("\n".join(texts), "utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@by_page
def test_json_reads(page: Path) -> None:
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)


def slug(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@by_page
def test_links_between_guides_resolve(page: Path) -> None:
    for place, anchor in re.findall(
        r"\]\(([\w./-]+\.md)?(?:#([\w.-]+))?\)", page.read_text("utf-8")
    ):
        if place.startswith(("methods/", "api/")) or place == "cli.md":
            continue  # made by the build, which refuses links to nowhere
        target = DOCS / place if place else page
        assert target.is_file(), f"{page.name} links to {place}"
        headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
        assert not anchor or anchor in map(slug, headings), f"{page.name} links to {place}#{anchor}"


# --- the picture ---------------------------------------------------------------------------------


def drawer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_demo", DOCS / "assets" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_what_the_demo_says() -> None:
    def arm(*each: float) -> dict[str, Any]:
        return {"accuracy": {"each": each, "mean": sum(each) / len(each), "sd": 0.01}}

    told = {"teacher": arm(0.97), "scratch": arm(0.8, 0.82), "students": {"<kd>": arm(0.9, 0.92)}}
    root = ElementTree.fromstring(drawer().picture(told))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert len(root.findall(f"{space}circle")) == 4
    said = " ".join(root.itertext())
    for words in ("alone, on the labels", "81.0 ± 1.0 %", "taught by <kd>", "91.0", "97.0 %"):
        assert words in said
    assert max(float(c.get("cx", "")[:-1]) for c in root.findall(f"{space}circle")) < 100


def test_the_stored_picture_stands_alone() -> None:
    text = (DOCS / "assets" / "demo.svg").read_text("utf-8")
    ElementTree.fromstring(text)
    assert "<script" not in text
    assert "url(" not in text


# --- the whole -----------------------------------------------------------------------------------

BUILD = """
import sys
from mkdocs.__main__ import cli
cli(["build", "--strict", "--site-dir", sys.argv[1]], standalone_mode=False)
assert "torch" not in sys.modules, "building the pages imported torch"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    return out


def said(page: Path) -> str:
    """What a page says, without blanks."""
    text = page.read_text("utf-8")
    return re.sub(r"\s", "", unescape(re.sub(r"<[^>]+>", "", text)))


@pytest.mark.parametrize("entry", cards(), ids=lambda entry: entry.card.key)
def test_a_methods_page_says_all_that_its_file_says(site: Path, entry: Any) -> None:
    page = said(site / "methods" / f"{entry.card.key}.html")
    written = outline(entry.path)
    lines = [*written.doc.replace("`", "").splitlines(), entry.card.title, *entry.card.needs]
    lines += [field.name.replace("_", "-") for field in written.fields]
    lines += [entry.card.departs.replace("`", ""), *(x.replace("`", "") for x in entry.card.lacks)]
    for line in lines:
        words = (
            line.replace("+", " and ").replace("|", " or ") if line in entry.card.needs else line
        )
        if words.strip() != "Example:":
            assert re.sub(r"\s", "", words.removeprefix("- ")) in page, line


def test_every_command_and_public_name_has_its_place(site: Path) -> None:
    import limbeck

    page = said(site / "cli.html")
    assert all(f"usage:limbeck{name}" in page for name in COMMANDS)
    names = said(site / "api" / "index.html")
    assert all(f"limbeck.{name}" in names for name in limbeck.__all__)


def test_pages_ask_the_network_for_nothing(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(cards())
    for page in pages:
        text = page.read_text("utf-8")
        asked = re.findall(r'<(?:script|link|img|iframe|source)[^>]*\b(?:src|href)="([^"]*)"', text)
        assert not [a for a in asked if a.startswith(("http:", "https:", "//"))], page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//", sheet.read_text("utf-8")), sheet


def test_links_of_method_pages_lead_somewhere(site: Path) -> None:
    """Those inside pieces of HTML, at which mkdocs does not look."""
    for page in (site / "methods").glob("*.html"):
        for link in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', page.read_text("utf-8")):
            assert (page.parent / link).is_file(), (page.name, link)


OUTER = """<!doctype html><body style="margin:0"><pre id="told"></pre><script>
addEventListener("message", (e) => { document.getElementById("told").textContent = e.data; });
</script><iframe src="methods/INNER" style="border:0;width:390px;height:900px"></iframe>"""
PROBE = """<script>const told = () => parent.postMessage(JSON.stringify({
  rows: [...document.querySelectorAll("table.methods tbody tr")]
    .filter((row) => row.getClientRects().length).length,
  wide: document.documentElement.scrollWidth, seen: innerWidth,
  colour: getComputedStyle(document.querySelector(".status")).color,
  paper: getComputedStyle(document.body).backgroundColor,
}), "*");
addEventListener("load", () => setTimeout(told, 300));</script></body>"""


def test_the_sites_table_works_on_a_phone(site: Path, browse: Any) -> None:
    for name, choice in (("index", "#room=language&amp;search=on+policy"), ("kd", "")):
        text = (site / "methods" / f"{name}.html").read_text("utf-8")
        inner = site / "methods" / f"probed-{name}.html"
        inner.write_text(text.replace("</body>", PROBE), "utf-8")
        outer = site / "outer.html"
        outer.write_text(OUTER.replace("INNER", f"{inner.name}{choice}"), "utf-8")
        done = browse(outer, "--window-size=1200,1000")
        inner.unlink()
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        # The search of mkdocs-material itself wants a server.
        assert not [line for line in said if "search_index.js" not in line]
        found = re.search(r'<pre id="told">(.+?)</pre>', done.stdout)
        assert found, done.stdout[:500]
        told = json.loads(found[1])
        assert told["wide"] <= told["seen"] == 390
        assert told["colour"] not in (told["paper"], "rgb(0, 0, 0)")  # the variables are there
        policy = [e for e in cards("language") if "on_policy" in e.card.kinds]
        assert told["rows"] == (len(policy) if choice else 0)
