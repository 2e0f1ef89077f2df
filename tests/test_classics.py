"""docs/classics.yaml: its shape, and that its numbers and defaults are those of the methods."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from limbeck.core.card import Card
from limbeck.core.losses.divergences import Divergence, kl
from limbeck.language.minillm import returns
from limbeck.registry import cards, make
from limbeck.vision.crd import nce

PATH = Path(__file__).resolve().parents[1] / "docs" / "classics.yaml"
CLASSICS = [
    "kd",
    "crd",
    "dkd",
    "gkd",
    "minillm",
    "at",
    "nst",
    "fsp",
    "kdsvd",
    "vid",
    "dist",
    "lskd",
    "mlkd",
    "wsld",
    "ft",
    "sp",
    "cc",
    "pkt",
    "ab",
    "ickd",
    "reviewkd",
    "simkd",
    "srd",
    "pad",
    "tfkd",
    "ofd",
    "dml",
    "sskd",
]
TEXTS = {"key", "title", "ref", "room", "mechanism", "small_demo", "paper_result", "pitfalls"}
LISTS = {"kind", "parts", "exact_checks", "disagree", "unsure"}
KEYS = "kd crd dkd gkd minillm at nst ab ofd"
ENTRIES = yaml.safe_load(PATH.read_text(encoding="utf-8"))


def card_of(entry: dict) -> Card:
    return next(found.card for found in cards() if found.card.key == entry["key"])


def test_the_classics_of_the_library_are_there() -> None:
    keys = [entry["key"] for entry in ENTRIES]
    assert len({*keys}) == len(keys)
    assert {*keys} == {*CLASSICS}
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


def test_defaults_of_language_methods_are_those_that_are_written() -> None:
    gkd, minillm = make("gkd"), make("minillm")
    assert (gkd.gkd, gkd.divergence, gkd.beta, gkd.own) == (1.0, "jsd", 0.5, 0.5)
    assert (gkd.other, gkd.temperature, gkd.per) == ("data", 1.0, "text")
    told = "gkd 1, divergence jsd, beta 0.5, own 0.5 (the lambda above), other data, temperature 1"
    assert told in ENTRIES[3]["mechanism"]
    assert (minillm.single, minillm.long, minillm.corpus, minillm.alpha) == (1.0, 1.0, 1.0, 0.2)
    assert (minillm.inner, minillm.clip, minillm.gamma) == (4, 0.2, 0.95)
    assert minillm.normalise
    assert minillm.whiten
    told = "single 1, long 1, corpus 1, alpha 0.2, inner 4, clip 0.2, gamma 0.95, normalise, whiten"
    assert told in ENTRIES[4]["mechanism"]


def test_worked_numbers_of_language_methods_are_right() -> None:
    p, q = torch.tensor([0.75, 0.25], dtype=torch.float64), torch.tensor([0.5, 0.5])

    def value(name: str, a: float = 0.5) -> float:
        return float(Divergence(name, a)(q.double().log(), p.log()))

    def slope(name: str, a: float = 0.5) -> torch.Tensor:
        logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        there = Divergence(name, a)(logits.log_softmax(-1), p.log())
        return torch.autograd.grad(there, logits)[0]

    said = " ".join(ENTRIES[3]["exact_checks"])
    assert f"0.5 = {value('jsd'):.6f}, at 0.9 = {value('jsd', 0.9):.6f}" in said
    assert f"forward KL = {value('forward_kl'):.6f}" in said
    assert f"reverse KL = {value('reverse_kl'):.6f}" in said
    assert f"1e-4 is {value('jsd', 1e-4) / 1e-4:.6f}" in said
    assert f"1 - 1e-4 is {value('jsd', 1 - 1e-4) / 1e-4:.6f}" in said
    m = 0.9 * p + 0.1 * q
    gap = (q / m).log()
    assert torch.allclose(slope("jsd", 0.9), 0.1 * q * (gap - (q * gap).sum()))

    said = " ".join(ENTRIES[4]["exact_checks"])
    found = slope("reverse_kl").tolist()
    assert found == pytest.approx([-math.log(3) / 4, math.log(3) / 4])
    assert f"{found[0]:.6f} and {found[1]:.6f}" in said
    mixed = 0.2 * p + 0.8 * q
    w = (q / mixed).tolist()
    assert float((mixed * torch.tensor(w)).sum()) == pytest.approx(1)
    assert f"p~ = ({mixed[0]:.2f}, {mixed[1]:.2f}), w = ({w[0]:.6f}, {w[1]:.6f})" in said
    r, there = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert returns(r, there).tolist() == [[3, 4, 0]]
    assert returns(r, there, own=True)[0].tolist() == pytest.approx([7 / 3, 3, 4])
    assert returns(r, there, 0.5, False).tolist() == [[4, 4, 0]]


def test_worked_numbers_are_right() -> None:
    soft = kl(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))
    assert f"KL = log 2 - H(3/4, 1/4) = {float(soft):.6f}" in " ".join(ENTRIES[0]["exact_checks"])
    # at the start, h = 1 / N: log(1 + K) + K log(1 + 1 / K), about log(1 + K) + 1
    start = nce(torch.zeros(1, 1 + 16384, dtype=torch.float64), torch.tensor(50e3).log(), 50000, 1)
    assert float(start) == pytest.approx(math.log(16385) + 1, abs=1e-4)
    assert f"{math.exp(1 / (2 * 128 * 0.07**2)):.2f}" in " ".join(ENTRIES[1]["exact_checks"])
