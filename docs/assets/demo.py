"""Draw the picture of the first page from a finished demo.

python docs/assets/demo.py [FOLDER]

FOLDER is the demo's (runs/demo). It writes demo.svg beside this file; the picture stands alone, and
takes the colours of a page that it lies in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.report.strips import Strip, strips
from limbeck.report.words import percent, spread

_LIGHT = "--paper:#fff;--ink:#1b1e22;--soft:#585f67;--rule:#dcdcd5;--c0:#0a6a8a"
_DARK = "--paper:#1e2129;--ink:#e8e8e4;--soft:#a5acb3;--rule:#3c4148;--c0:#5cb8d6"
_STYLE = f"""
.demo{{{_LIGHT};display:block;overflow:hidden;background:var(--paper)}}
@media(prefers-color-scheme:dark){{.demo{{{_DARK}}}}}
[data-md-color-scheme=default] .demo{{{_LIGHT};background:none}}
[data-md-color-scheme=slate] .demo{{{_DARK};background:none}}
.demo .c0{{--c:var(--c0)}}
.demo .grey{{--c:var(--soft)}}
.demo text{{fill:var(--ink);font:12px system-ui,sans-serif;font-variant-numeric:tabular-nums;
paint-order:stroke;stroke:var(--paper);stroke-width:6px;stroke-linejoin:round}}
.demo .soft{{fill:var(--soft)}}
.demo .name{{font-weight:600;font-size:14px}}
.demo .rule{{stroke:var(--rule)}}
.demo .mark{{stroke:var(--soft);stroke-dasharray:4 3}}
"""


def picture(told: Mapping[str, Any]) -> str:
    """The picture of a demo, of which result.json says `told`: a strip for each student."""
    arms = {"alone, on the labels": told["scratch"]}
    arms |= {f"taught by {name}": arm for name, arm in told["students"].items()}
    rows = [
        Strip(
            name,
            arm["accuracy"]["each"],
            spread(arm["accuracy"]),
            None if arm is told["scratch"] else 0,
        )
        for name, arm in arms.items()
    ]
    teacher = told["teacher"]["accuracy"]["mean"]
    desc = "; ".join([*(f"{row.name} {row.note}" for row in rows), f"teacher {percent(teacher)}"])
    drawn = strips(rows, {"teacher": teacher}, title="Accuracy on the test set", desc=desc)
    head, _, body = drawn.partition(">\n")
    where = 'xmlns="http://www.w3.org/2000/svg" class="demo"'
    whole = f"{head.replace('<svg', f'<svg {where}')}>\n<style>{_STYLE}</style>\n{body}"
    return "\n".join(line for line in whole.splitlines() if line.strip()) + "\n"


def main(folder: str = "runs/demo") -> None:
    """Read the demo in a folder and write the picture."""
    told = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    path = Path(__file__).with_name("demo.svg")
    path.write_text(picture(told), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
