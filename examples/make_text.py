"""Write a folder of English texts, with a held-out part, from what Debian ships.

Needs the packages bible-kjv and wordnet-base. Elsewhere any folder of .txt or .jsonl files does, or
a data set of the hub as hf:ID.

    python examples/make_text.py text/
"""

import json
import subprocess
import sys
from pathlib import Path


def verses() -> list[str]:
    """Chapters of the King James Version."""
    said = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True
    )
    chapters: dict[str, list[str]] = {}
    for line in said.stdout.splitlines():
        place, _, verse = line.partition(" ")
        chapters.setdefault(place.partition(":")[0], []).append(verse)
    return [" ".join(each) for each in chapters.values()]


def glosses() -> list[str]:
    """Words with their meanings, of WordNet's nouns, some on a page."""
    lines = Path("/usr/share/wordnet/data.noun").read_text("utf-8").splitlines()
    rows = [line.split("|") for line in lines if "|" in line and not line.startswith("  ")]
    said = [f"{head.split()[4].replace('_', ' ')}: {gloss.strip()}." for head, gloss in rows]
    return [" ".join(said[i : i + 20]) for i in range(0, len(said), 20)]


def main(folder: Path) -> None:
    """Write train.jsonl, valid.jsonl and test.jsonl: of each 40 texts one is held out for each."""
    texts = (verses() + glosses())[::4]  # as many as two cores can learn from in an hour
    parts = {"test": texts[::40], "valid": texts[1::40]}
    parts["train"] = [text for i, text in enumerate(texts) if i % 40 > 1]
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        lines = (json.dumps({"text": row}) for row in rows)
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        print(f"{folder / part}.jsonl: {len(rows)} texts")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "text"))
