"""`limbeck speed --objectives` at tiny sizes: who is measured or named, and the same numbers."""

import json

import pytest
import torch

from limbeck.bench import _speed_objectives as objectives
from limbeck.cli import speeding
from limbeck.errors import Missing
from limbeck.registry import cards

pytestmark = pytest.mark.xdist_group("speed_objectives")
TINY = objectives.Sizes(batch=6, classes=10, width=16, grid=4, samples=40, labels=3)
NOT = {
    *("ab", "dml", "e2kd", "fsp", "ft", "masked_counterfactual_ft", "mekd", "mlkd", "ofd", "simkd"),
    *("sskd", "takd", "tgeo_kd"),
}


def desk(name: str) -> objectives.Desk:
    return objectives.desks(name.partition(" ")[0], TINY)[name]


def test_every_vision_method_is_measured_or_named() -> None:
    rows = {name: row for name, *row in objectives.told((), True, TINY)}
    there = {entry.card.key for entry in cards(room="vision")}
    assert {name.partition(" ")[0] for name in rows} == there
    assert {name for name, (seconds, _, _) in rows.items() if not seconds} == NOT
    for name, (seconds, rises, why_not) in rows.items():
        assert bool(why_not) == (name in NOT)
        assert all(value > 0 for value in seconds.values()), name
        assert set(rises) == set(seconds)
        assert all(value >= 0 for value in rises.values()), name


def test_a_method_whose_stages_are_not_known_is_named(monkeypatch) -> None:
    monkeypatch.delitem(objectives.NAMED, "takd")
    [(name, seconds, _, why_not)] = objectives.told(["takd"], True, TINY)
    assert (name, dict(seconds)) == ("takd", {})
    assert "makes its fits itself" in why_not


@pytest.mark.parametrize("name", ["kd", "rkd", "crd", "fitnets hint"])
def test_torchdistill_beside_it_computes_the_same(name: str) -> None:
    """Values and gradients in the student; crd to the small number in torchdistill's logarithms."""
    pytest.importorskip("torchdistill", reason="needs torchdistill")
    one = desk(name)
    found = {}
    for way, value in one.ways().items():  # each once: torchdistill's crd moves its banks
        v = value()
        grads = torch.autograd.grad(v, one.leaves, allow_unused=True)
        found[way] = (v.detach(), [g for g in grads if g is not None])
    assert list(found) == ["torchdistill", "limbeck"]
    (theirs, their_grads), (mine, my_grads) = found.values()
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert any(bool(g.any()) for g in my_grads)
    for a, b in zip(my_grads, their_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_all_terms_of_the_defaults_are_measured_and_reach_the_student() -> None:
    for entry in objectives.asked(()):
        if objectives.why_not(entry):
            continue
        for name, one in objectives.desks(entry.card.key, TINY).items():
            terms = one.objective.terms(one.parts, *one.sides, one.batch, one.clock)
            for term, value in terms.items():
                assert float(value.detach()) != 0, (name, term)
                grads = torch.autograd.grad(value, one.leaves, retain_graph=True, allow_unused=True)
                reached = any(g is not None and bool(g.any()) for g in grads)
                assert reached, (name, term)


def test_the_teacher_gets_no_gradient_and_labels_are_those_of_the_set() -> None:
    one = desk("crd")
    assert not one.sides[1].embedding.requires_grad
    assert one.facts.labels is not None
    assert torch.equal(one.facts.labels[one.batch.index], one.batch.y)
    assert bool((desk("l2d").batch.y.sum(1) == TINY.labels).all())


def test_the_command_prints_rows_and_reasons(monkeypatch, capsys) -> None:
    monkeypatch.setattr(objectives, "Sizes", lambda: TINY)
    assert speeding.speed(["--quick", "--json", "--objectives", "kd,mekd"]) == 0
    kd, mekd = json.loads(capsys.readouterr().out)
    assert kd["path"] == "kd"
    assert kd["seconds"]["limbeck"] > 0
    assert set(kd["bytes"]) == set(kd["seconds"])
    assert mekd == {"path": "mekd", "why_not": objectives.NAMED["mekd"]}
    assert speeding.speed(["--quick", "--objectives", "fitnets, takd"]) == 0
    text = capsys.readouterr().out
    assert "fitnets hint" in text
    assert "takd   (not measured: it minimises what kd does" in text
    with pytest.raises(Missing, match="no vision method is called 'kdd'; did you mean"):
        speeding.speed(["--objectives", "kdd"])
