"""The rows of language steps: what stands beside each other in them computes the same numbers."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers")

from limbeck.bench import _speed_steps as rows
from limbeck.core.engine import fit
from limbeck.core.objectives import NextTokens
from limbeck.core.run import Run

pytestmark = pytest.mark.xdist_group("speed_steps")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fifty tokens, so that the fifty likeliest are all there are; a teacher sure of its own."""
    sizes = {"VOCAB": 50, "CONTEXT": 24, "BATCH": 4, "NEW": 5, "RATE": 0.5}
    for name, value in sizes.items():
        monkeypatch.setattr(rows, name, value)
    real = rows.model

    def made(layers, width):
        model = real(1, 16 * layers)
        if layers == 4:  # the teacher: else draws from it are noise for the most part
            model.lm_head.weight.data.mul_(30)
        return model

    monkeypatch.setattr(rows, "model", made)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def moved(monkeypatch):
    """By what each fit moved its student, in order."""
    kept, make = [], rows.make

    class Watched:
        def __init__(self, method):
            self.method = method

        def run(self, task):
            result = self.method.run(task)
            kept.append(flat(result.model) - flat(task.new_student(0)))
            return result

    monkeypatch.setattr(rows, "make", lambda key, **fields: Watched(make(key, **fields)))
    return kept


def test_a_cache_of_all_tokens_is_the_live_teacher_and_draws_are_near(tmp_path, moved):
    ways = rows.taught(2, tmp_path)
    for name in ("live teacher", "cached, 50 likeliest", "cached, 12 draws"):
        assert ways[name]() > 0
    live, whole, drawn = moved
    assert float(live.norm()) > 1e-3
    assert float((whole - live).norm()) < 0.05 * float(live.norm())  # it is packed
    assert float(torch.cosine_similarity(drawn, live, dim=0)) > 0.8
    assert not torch.allclose(drawn, live)


def test_plain_cross_entropy_is_that_of_a_fit_on_the_labels():
    """On texts that are all the same, as the two take them in another order; one step."""
    given, made = rows.task(1), []
    ids = given.train["x"]["ids"]
    ids[:] = ids[:1].clone()
    given.train["y"][:, 1:] = ids[:, 1:]

    def student():
        made.append(rows.model(2, 128))
        return made[-1]

    given = replace(given, student=student)
    assert rows.bare(given) > 0
    bare = flat(made[-1])
    with Run(given, device="cpu") as run:
        other = run.student(given)
        begun = flat(other)
        fit(NextTokens(), other, given.the_teacher(), given.batches(), name="fit")
    assert float((bare - begun).norm()) > 1e-3
    torch.testing.assert_close(flat(other), bare, rtol=1e-4, atol=1e-6)


def test_both_on_policy_ways_begin_alike_and_train_on_as_many_tokens(moved, monkeypatch):
    from limbeck.core.text import onpolicy

    counts, real = [], onpolicy.OnPolicy.__call__

    def called(self, *asked):
        batch = real(self, *asked)
        counts.append(("written" in batch, int((batch.y != -100).sum())))
        return batch

    monkeypatch.setattr(onpolicy.OnPolicy, "__call__", called)
    for way in rows.written(1).values():  # a first step has nothing to replay
        assert way() > 0
    assert torch.equal(*moved)
    assert float(moved[0].norm()) > 0
    counts.clear()
    for way in rows.written(12).values():
        way()
    assert {n for _, n in counts} == {rows.BATCH * rows.NEW}
    wrote = [there for there, _ in counts]
    assert all(wrote[:12])
    assert 0 < sum(wrote[12:]) < 12
