"""What mkdocs asks while it builds: pages made from cards, parsers and docstrings, in memory.

Method files are read as text; neither torch nor any method is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from _methods import each_method, leaderboard, methods, prose, table, told
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import limbeck
from limbeck.cli import COMMANDS
from limbeck.registry import cards
from limbeck.report import table as of_methods

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "src" / "limbeck"

MORE = {
    "core.method": "Clock number",
    "core.plain": "task",
    "core.remote": "served",
    "core.views": "Side",
    "doctor": "diagnose Diagnosis Finding",
    "errors": "Missing NonFinite",
    "runs.export": "export Exported",
    "vision._kit.task": "task",
}
"""Documented beside the names of `limbeck` itself."""

CALLED = {"vision._kit.task": "vision"}
"""Modules that users import from elsewhere."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made here into the navigation."""
    assert config.nav is not None
    made = {
        "Methods": [{e.card.key: f"methods/{e.card.key}.md"} for e in cards()],
        "Reference": [{_called(name): f"api/{name}.md"} for name in _modules()],
    }
    for section in config.nav:
        for name, pages in section.items():
            pages += made.get(name, [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {"cli.md": "\n".join(_commands()), "methods/index.md": "\n".join(methods())}
    made["methods/leaderboard.md"] = "\n".join(leaderboard())
    made |= {f"methods/{key}.md": text for key, text in each_method()}
    made["api/index.md"] = "\n".join(_names())
    made |= {f"api/{name}.md": "\n".join(_module(name)) for name in _modules()}
    made |= {
        f"assets/{path.name}": path.read_text(encoding="utf-8")
        for path in (of_methods.SCRIPT, of_methods.STYLE)
    }
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the demo's picture where the first page asks for it."""
    mark = "<!-- the demo's picture -->"
    if mark not in markdown:
        return markdown
    path = DOCS / "assets" / "demo.svg"
    if not path.is_file():
        raise PluginError(f"{path} is missing; make it by: python docs/assets/demo.py runs/demo")
    return markdown.replace(mark, path.read_text(encoding="utf-8"))


# --- commands ------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield "# The command line\n"
    yield "What `limbeck --help` and `limbeck COMMAND --help` print.\n"
    yield f"```text\n{told('--help').strip()}\n```\n"
    for name in COMMANDS:
        yield f"## limbeck {name}\n\n```text\n{told(name, '--help').strip()}\n```\n"


# --- names of Python -----------------------------------------------------------------------------


def _modules() -> dict[str, list[str]]:
    """Documented names by module, each module as "core.task"."""
    found: dict[str, list[str]] = {}
    for name, home in sorted(limbeck._HOME.items()):
        found.setdefault(home, []).append(name)
    for home, names in MORE.items():
        found[home] = list(dict.fromkeys([*found.get(home, []), *names.split()]))
    return dict(sorted(found.items()))


def _called(module: str) -> str:
    return CALLED.get(module, module)


def _names() -> Iterator[str]:
    yield "# Python\n"
    yield (
        "What `import limbeck` offers, and what else is meant for use; importing it loads neither "
        "torch nor any method.\n"
    )
    rows = []
    for module, names in _modules().items():
        said = _first_sentences(module)
        for name in names:
            whole = f"limbeck.{name}" if limbeck._HOME.get(name) == module else ""
            whole = whole or f"limbeck.{_called(module)}.{name}"
            link = f"{module}.md#limbeck.{module}.{name}"
            rows.append([f"[`{whole}`]({link})", prose(said.get(name, ""))])
    yield from table(["name", ""], sorted(rows, key=lambda row: row[0].lower()))


def _first_sentences(module: str) -> dict[str, str]:
    path = SOURCE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    defs = (ast.FunctionDef, ast.ClassDef)
    said, homes = {}, {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, defs):
            said[node.name] = (ast.get_docstring(node) or "").partition("\n\n")[0]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limbeck."):
            homes |= {alias.name: str(node.module) for alias in node.names}
    for name, home in homes.items():
        if name in MORE.get(module, "").split():
            said[name] = _first_sentences(home.removeprefix("limbeck.")).get(name, "")
    return said


def _module(module: str) -> Iterator[str]:
    yield f"# limbeck.{_called(module)}\n"
    for name in _modules()[module]:
        yield f"::: limbeck.{module}.{name}\n"
