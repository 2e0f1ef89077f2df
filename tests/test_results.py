"""Numbers in the guides are those that were measured, in `results/`."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rows_of(page: str, heading: str) -> dict[str, list[str]]:
    """The cells of the first table behind a heading, by the first of each row."""
    text = (ROOT / "docs" / page).read_text().partition(f"## {heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines is not None
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return {row[0]: row[1:] for row in cells[2:]}


def test_the_language_guide() -> None:
    lines = (ROOT / "results" / "smollm2.jsonl").read_text().splitlines()
    runs = {row["run"]: row for row in map(json.loads, lines)}
    first, second = runs["first"], runs["second"]
    sides = (first["sides"]["teacher"], first["sides"]["before"], first["sides"]["student"])
    sides = (*sides, second["sides"]["student"])
    agree = (None, *(first["agreement"][n] for n in ("before", "student")))
    agree = (*agree, second["agreement"]["student"])
    table = rows_of("language.md", "What an hour on two cores gives")
    expected = {
        "perplexity": [
            f"{s['perplexity']:.1f}" if s["perplexity"] < 1e6 else f"{s['perplexity']:,.0f}"
            for s in sides
        ],
        "bits per byte": [f"{s['bits_per_byte']:.3f}" for s in sides],
        "KL of the teacher from it, nats a token": [
            "" if a is None else f"{a['kl']:.2f}" for a in agree
        ],
        "same likeliest token as the teacher": [
            "" if a is None else f"{a['top1']:.3f}" for a in agree
        ],
        "ROUGE-L of 8 answers": [f"{s['rouge_l']:.3f}" for s in sides],
        "parameters": [f"{s['parameters'] / 1e6:.1f} M" for s in sides],
        "tokens written in a second": [f"{s['tokens_per_second']:.0f}" for s in sides],
    }
    cut = table["perplexity"][1]  # rounded to three places
    assert abs(float(cut.replace(",", "")) / sides[1]["perplexity"] - 1) < 1e-3
    table["perplexity"][1] = expected["perplexity"][1]
    assert {name: table[name] for name in expected} == expected
    minutes = [str(round(runs[n]["seconds"] / 60)) for n in ("cache", "first", "second")]
    assert table["minutes"] == ["", "", " + ".join(minutes[:2]), minutes[2]]
