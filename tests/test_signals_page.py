"""docs/signals.md: its table of divergences and signals is what the code does.

LIMBECK_WRITE=1 python -m pytest tests/test_signals_page.py   writes the table anew
"""

import os
from pathlib import Path

import pytest
import torch

from limbeck.core.losses.divergences import NAMES, Divergence, rows, summed
from limbeck.core.signals import Dense, Head, Linear, Mixture, Sampled, TopK
from limbeck.errors import UsageError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "signals.md"
V = 6
DRAW = torch.Generator().manual_seed(0)
P = torch.randn(2, V, generator=DRAW)
TOP = TopK(*reversed(P.log_softmax(-1).topk(2)), V)
DRAWS = Sampled(torch.zeros(2, 1).long(), torch.ones(2, 1), V)
SIGNALS = {
    "dense": Dense(P),
    "top-k": TOP,
    "sampled": DRAWS,
    "mixture, dense": Mixture((Dense(P), Dense(P.flip(0))), (0.5, 0.5)),
    "mixture of few": Mixture((TOP, DRAWS), (0.5, 0.5)),
}


def cell(name: str, signal: object) -> str:
    """Which roads lead to this cell; both give the same number."""
    how, hidden, weight = Divergence(name), torch.randn(2, 3), torch.randn(V, 3)  # type: ignore[arg-type]
    s = Linear(hidden, Head(weight))
    values = []
    for road in (
        lambda: rows(how, s, signal).sum(),  # type: ignore[arg-type]
        lambda: summed(how, s, signal, torch.ones(2)),  # type: ignore[arg-type]
    ):
        try:
            values.append(road())
        except UsageError:
            values.append(None)
    if None in values:
        assert values == [None, None]
        return "-"
    torch.testing.assert_close(*values)
    return "plain, fused"


def table() -> str:
    lines = [f"| divergence | {' | '.join(SIGNALS)} |", "|---" * (len(SIGNALS) + 1) + "|"]
    for name in NAMES:
        cells = [cell(name, signal) for signal in SIGNALS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_table_is_what_the_code_does() -> None:
    page = PAGE.read_text("utf-8")
    head, _, rest = page.partition("it -->\n")
    old, _, tail = rest.partition("<!-- end -->")
    if os.environ.get("LIMBECK_WRITE"):
        PAGE.write_text(f"{head}it -->\n\n{table()}\n\n<!-- end -->{tail}", "utf-8")
        pytest.skip("written")
    assert old.strip() == table()
