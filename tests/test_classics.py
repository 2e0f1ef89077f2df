"""docs/classics.yaml: its shape, and that its numbers and defaults are those of the methods."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from limbeck.core.card import Card
from limbeck.core.losses.divergences import kl
from limbeck.registry import cards, make
from limbeck.vision.crd import nce

PATH = Path(__file__).resolve().parents[1] / "docs" / "classics.yaml"
TEXTS = {"key", "title", "ref", "room", "mechanism", "small_demo", "paper_result", "pitfalls"}
LISTS = {"kind", "parts", "exact_checks", "disagree", "unsure"}
ENTRIES = yaml.safe_load(PATH.read_text(encoding="utf-8"))


def card_of(entry: dict) -> Card:
    return next(found.card for found in cards() if found.card.key == entry["key"])


def test_the_classics_of_the_library_are_there() -> None:
    assert [entry["key"] for entry in ENTRIES] == ["kd", "crd", "dkd"]
    assert PATH.read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["key"])
def test_an_entry_has_every_part(entry: dict) -> None:
    assert set(entry) == TEXTS | LISTS | {"confidence"}
    assert all(isinstance(entry[name], str) and entry[name].strip() for name in TEXTS)
    for name in LISTS:
        assert entry[name], name
        assert all(isinstance(item, str) and item.strip() for item in entry[name]), name
    assert entry["confidence"] in ("high", "medium", "low")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["key"])
def test_an_entry_is_of_a_method(entry: dict) -> None:
    found = next(found for found in cards() if found.card.key == entry["key"])
    assert found.room == entry["room"]
    assert found.card.title == entry["title"]
    assert found.card.arxiv in entry["ref"]
    assert set(entry["kind"]) == set(found.card.kinds)


def test_defaults_are_those_that_are_written() -> None:
    kd, crd = make("kd"), make("crd")
    assert (kd.label, kd.kd, kd.tau) == (0.1, 0.9, 4.0)
    assert "label 0.1, kd 0.9, tau 4" in ENTRIES[0]["mechanism"]
    assert (crd.label, crd.crd, crd.tau, crd.negatives, crd.dim) == (1.0, 0.8, 0.07, 16384, 128)
    assert "K = 16384" in ENTRIES[1]["mechanism"]
    assert "L = 1 * CE + 0.8 * (NCE_s + NCE_t)" in ENTRIES[1]["mechanism"]


def test_worked_numbers_are_right() -> None:
    soft = kl(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))
    assert f"KL = log 2 - H(3/4, 1/4) = {float(soft):.6f}" in " ".join(ENTRIES[0]["exact_checks"])
    # at the start, h = 1 / N: log(1 + K) + K log(1 + 1 / K), about log(1 + K) + 1
    start = nce(torch.zeros(1, 1 + 16384, dtype=torch.float64), torch.tensor(50e3).log(), 50000, 1)
    assert float(start) == pytest.approx(math.log(16385) + 1, abs=1e-4)
    assert f"{math.exp(1 / (2 * 128 * 0.07**2)):.2f}" in " ".join(ENTRIES[1]["exact_checks"])
