"""The frame of a page, and the plain pieces of which pages are made.

A page is one file: its style and pictures lie inside it, it asks the network for nothing and runs
no script but one that it is made with. Text becomes `Html` only through `text`, which escapes it;
what takes `Html` takes it as it is, and a type checker sees the difference.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NewType

from limbeck import __version__
from limbeck.report.style import STYLE

__all__ = [
    "Html",
    "code",
    "facts",
    "figure",
    "join",
    "lead",
    "note",
    "page",
    "section",
    "table",
    "text",
]

Html = NewType("Html", str)
"""A piece of a page in which every name is escaped already."""

_FRAME = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
img-src data:{allowed}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<p class="kind">{kind}</p>
<h1>{title}</h1>
{head}
</header>
<main>
{body}
</main>
<footer>limbeck {version}</footer>
{script}</body>
</html>
"""


def text(value: object) -> Html:
    """Escape anything for use in a page, between tags or in a quoted attribute."""
    return Html(escape(str(value), quote=True))


def join(pieces: Iterable[Html], between: str = "\n") -> Html:
    """Put pieces one after the other; `between` is plain text."""
    return Html(escape(between).join(pieces))


def page(
    kind: str,
    title: str,
    head: Sequence[Html],
    body: Sequence[Html],
    *,
    style: str = "",
    script: str = "",
) -> Html:
    """Make a whole page.

    Args:
        kind: a word or two above the title on what the page is.
        title: of the page.
        head: what stands under the title.
        body: the sections.
        style: rules beside those of every page.
        script: the one script that the page runs.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Html(
        _FRAME.format(
            kind=text(kind),
            title=text(title),
            style=f"{STYLE}{style}".strip(),
            allowed=f"; script-src 'sha256-{digest}'" if script else "",
            script=f"<script>{script}</script>\n" if script else "",
            head=join(head),
            body=join(body),
            version=text(__version__),
        )
    )


def section(title: str, *body: Html) -> Html:
    """Make a section with a heading."""
    return Html(f"<section>\n<h2>{text(title)}</h2>\n{join(body)}\n</section>")


def lead(*sentences: str) -> Html:
    """Make the paragraph that says it all."""
    return Html(f'<p class="lead">{_flowing(sentences)}</p>')


def note(*sentences: str) -> Html:
    """Make a paragraph in a softer colour."""
    return Html(f'<p class="note">{_flowing(sentences)}</p>')


def _flowing(sentences: Iterable[str]) -> Html:
    """Sentences in which no line begins with a sign, and none ends within a flag."""
    words = text(" ".join(sentences)).replace(" %", "&nbsp;%").replace(" ±", "&nbsp;±")
    return Html(re.sub(r"(?<!\S)--[a-z][a-z-]*", _whole, words))


def _whole(found: re.Match[str]) -> str:
    """A word in which no line ends, unless it is longer than one."""
    return f'<span class="word">{found[0]}</span>'


def code(words: str) -> Html:
    """Make a block of code, such as a command; its lines end between words."""
    kept = re.sub(r"\S+", _whole, text(words))
    return Html(f"<pre><code>{kept}</code></pre>")


def facts(named: Mapping[str, object]) -> Html:
    """Make a list of names and what is to be said of each; `Html` is not for values here."""
    rows = (f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in named.items())
    return Html("<dl>\n" + "\n".join(rows) + "\n</dl>")


def figure(picture: Html, caption: str = "", title: str = "", key: Html | None = None) -> Html:
    """Frame a picture: heading above it, key and caption below."""
    heading = f"<h3>{text(title)}</h3>\n" if title else ""
    below = f"\n{key}" if key else ""
    below += f"\n<figcaption>{text(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>\n{heading}{picture}{below}\n</figure>")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    caption: str,
    best: int | None = None,
) -> Html:
    """Make a table whose first column names the rows and whose others are numbers.

    Args:
        head: names of the columns.
        rows: the cells.
        caption: what the table shows.
        best: the row to set in bold.
    """
    side = ['scope="col"', *('scope="col" class="n"' for _ in head[1:])]
    tops = "".join(f"<th {s}>{text(name)}</th>" for s, name in zip(side, head, strict=True))
    lines = []
    for i, (name, *cells) in enumerate(rows):
        inner = "".join(f'<td class="n">{text(cell)}</td>' for cell in cells)
        mark = ' class="best"' if i == best else ""
        lines.append(f'<tr{mark}><th scope="row">{text(name)}</th>{inner}</tr>')
    body = "\n".join(lines)
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">\n<table>\n'
        f"<caption><span>{text(caption)}</span></caption>\n<thead><tr>{tops}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )
