"""Write the table of methods in README.md anew, from cards and the packaged digest of the trials.

python docs/readme.py
"""

from __future__ import annotations

from pathlib import Path

from limbeck.registry import cards
from limbeck.report.table import by_room
from limbeck.report.trials import all_told

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- methods: written by docs/readme.py -->\n"
END = "<!-- methods: end -->\n"


def renewed(text: str) -> str:
    """The text with a new table between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{README} lacks the lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}\n{by_room(cards(), all_told())}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
