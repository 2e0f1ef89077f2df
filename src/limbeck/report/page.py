"""The frame of a page, its style, and the plain pieces of which pages are made.

A page is one file: its style and pictures lie inside it, it asks the network for nothing and runs
no script. Text becomes `Html` only through `text`, which escapes it; what takes `Html` takes it as
it is, and a type checker sees the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NewType

from limbeck import __version__

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

_STYLE = (
    """
:root{color-scheme:light dark;--paper:#fdfdfb;--ink:#1b1e22;--soft:#585f67;--rule:#dcdcd5;
--faint:#f3f3ee;--c0:#0a6a8a;--c1:#b04a12;--c2:#4a7a1e;--c3:#7d3f98;--c4:#8a6a00;--c5:#a3174f}
@media(prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e8e8e4;--soft:#a5acb3;
--rule:#34383d;--faint:#1f2226;--c0:#5cb8d6;--c1:#f0905a;--c2:#9ac66a;--c3:#c99be0;--c4:#d9b650;
--c5:#f08ab2}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;padding:3rem 1.25rem 4rem;max-width:50rem;background:var(--paper);
color:var(--ink);font:1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1,h2,.lead{font-family:Charter,"Bitstream Charter","Sitka Text",Cambria,Georgia,serif}
h1,h2{text-wrap:balance}
h1{font-size:clamp(1.7rem,5vw,2.3rem);line-height:1.2;margin:0 0 1rem;font-weight:600}
h2{font-size:1.3rem;line-height:1.3;margin:3.25rem 0 .75rem;font-weight:600}
h3{font-size:1rem;margin:0;font-weight:600}
p{margin:.6rem 0;max-width:42rem}
.kind{margin:0 0 .4rem;color:var(--soft);font-size:.875rem;letter-spacing:.04em}
.lead{font-size:1.2rem;line-height:1.55}
.note,figcaption,footer{color:var(--soft);font-size:.9rem}
footer{margin-top:4rem;border-top:1px solid var(--rule);padding-top:1rem}
figure{margin:1.25rem 0}
.many{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));
gap:1.75rem 2rem}
.many figure{margin:0;min-width:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.95rem}
caption span{display:block;max-width:min(42rem,calc(100vw - 2rem))}
caption{text-align:left;color:var(--soft);font-size:.9rem;padding-bottom:.5rem}
th,td{padding:.45rem .9rem .45rem 0;text-align:left;vertical-align:baseline;
border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--soft);font-weight:500;font-size:.875rem}
tbody th{font-weight:600}
.n{text-align:right;white-space:nowrap}
.best td,.best th{font-weight:650}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.45rem 1.5rem;
margin:.75rem 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere;min-width:0}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.9em}
pre{background:var(--faint);border:1px solid var(--rule);border-radius:.35rem;margin:.75rem 0;
padding:.7rem .9rem;white-space:pre-wrap;overflow-wrap:anywhere}
svg{display:block;overflow:visible}
svg text{fill:var(--ink);font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
font-variant-numeric:tabular-nums}
svg text{paint-order:stroke;stroke:var(--paper);stroke-width:6px;stroke-linejoin:round}
svg .soft{fill:var(--soft)}
svg .name{font-weight:600;font-size:14px}
svg .rule{stroke:var(--rule);stroke-width:1}
svg .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:4 3}
svg .line{fill:none;stroke-width:1.75;stroke-linejoin:round}
.key{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;color:var(--soft);font-size:.9rem}
.key svg{display:inline-block;vertical-align:middle;margin-right:.4rem}
.key span{display:inline-flex;align-items:center}
.halves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr));
gap:0 2.5rem;align-items:center}
.halves figure{margin:1rem 0}
.square{max-width:22rem}
.dots .plot{width:100%;min-width:6rem}
.dots td,.dots tbody th{border-bottom:0;padding-top:.1rem;padding-bottom:.1rem;
vertical-align:middle}
.dots th .n,.dots .n svg{display:inline-block;vertical-align:-.15em;margin-right:.35rem}
.dots tbody th{font-weight:500}
.who{display:block;width:max-content;max-width:min(10rem,26vw);overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:1.5rem 1.25rem;
margin:1.25rem 0;padding:0;list-style:none}
.cards li{min-width:0;break-inside:avoid}
.cards img{display:block;width:6rem;height:6rem;object-fit:contain;background:var(--faint);
border:1px solid var(--rule);border-radius:.35rem}
.cards .crisp{image-rendering:pixelated}
.cards dl{grid-template-columns:max-content 1fr;gap:.1rem .5rem;margin:.5rem 0 0;font-size:.85rem}
.cards dd{margin:0}
.cards dd span{color:var(--soft);white-space:nowrap}
.cards b{font-weight:600}
.cards .sample{color:var(--soft);font-size:.85rem;line-height:1.45;margin:0;overflow-wrap:anywhere}
.cards .yes{color:var(--c2)}
.cards .no{color:var(--c5)}
.strip{margin:1.5rem 0 0}
.strip img{width:100%;max-width:22rem;image-rendering:pixelated;display:block}
@media(max-width:30rem){body{padding:1.75rem 1rem 3rem}dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:.6rem}.lead{font-size:1.1rem}th,td{padding-right:.45rem}
table{font-size:.8rem}.dots thead .n svg{display:block;margin:0 0 0 auto}}
@media(prefers-color-scheme:dark){.strip img{filter:invert(1)}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#444;--rule:#bbb;--faint:#fff;
--c0:#0a6a8a;--c1:#b04a12;--c2:#4a7a1e;--c3:#7d3f98;--c4:#8a6a00;--c5:#a3174f}
body{max-width:none;padding:0;font-size:10.5pt}figure,tr,dd,pre{break-inside:avoid}
h2,h3{break-after:avoid}h2{margin-top:1.75rem}.strip img{filter:none}}
"""
    + "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(6))
    + ".grey{--c:var(--soft)}"
)

_FRAME = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
img-src data:">
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
</body>
</html>
"""


def text(value: object) -> Html:
    """Escape anything for use in a page, between tags or in a quoted attribute."""
    return Html(escape(str(value), quote=True))


def join(pieces: Iterable[Html], between: str = "\n") -> Html:
    """Put pieces one after the other; `between` is plain text."""
    return Html(escape(between).join(pieces))


def page(kind: str, title: str, head: Sequence[Html], body: Sequence[Html]) -> Html:
    """Make a whole page.

    Args:
        kind: a word or two above the title on what the page is.
        title: of the page.
        head: what stands under the title.
        body: the sections.
    """
    return Html(
        _FRAME.format(
            kind=text(kind),
            title=text(title),
            style=_STYLE.strip(),
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
    """Sentences in which no line begins with a sign."""
    return Html(text(" ".join(sentences)).replace(" %", "&nbsp;%").replace(" ±", "&nbsp;±"))


def code(words: str) -> Html:
    """Make a block of code, such as a command."""
    return Html(f"<pre><code>{text(words)}</code></pre>")


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
