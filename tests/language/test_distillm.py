"""DistiLLM: the skewed loss, the scheduler's decisions, its threshold and its replay."""

import math

import pytest
import torch
from toys import CONTEXT, VOCAB, model, task, texts

import limbeck
from limbeck.core.data import Batch, Epochs
from limbeck.core.method import Clock
from limbeck.core.signals import Dense
from limbeck.core.text.places import IGNORED
from limbeck.errors import Missing
from limbeck.language import distillm
from limbeck.language.distillm import DistiLLM, Scheduler, Taught, decided, fresh

pytestmark = pytest.mark.xdist_group("language")


class Shown:
    def __init__(self, z):
        self.signal = Dense(z)

    def __call__(self, batch):
        return Shown(self.signal.logits[:2] * 0.5)


def sides(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, CONTEXT, VOCAB, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ["skew_kl", "skew_reverse_kl"])
def test_loss_by_loops(name):
    s, t, here = sides(0), sides(1), Batch(**texts(4))
    method = DistiLLM(divergence=name, a=0.2, kd=3.0, label=0.5)
    found = method.terms(None, Shown(s), Shown(t), here, None)
    skewed, gold = [], []
    for b in range(4):
        for i in range(CONTEXT - 1):
            if (y := int(here.y[b, i + 1])) == IGNORED:
                continue
            p, q = t[b, i].softmax(-1), s[b, i].softmax(-1)
            one, two = (p, 0.2 * p + 0.8 * q) if name == "skew_kl" else (q, 0.8 * p + 0.2 * q)
            skewed.append(float((one * (one / two).log()).sum()))
            gold.append(-math.log(q[y]))
    assert float(found["kd"].sum / found["kd"].count) == pytest.approx(
        3 * sum(skewed) / len(skewed)
    )
    assert float(found["label"].sum / found["label"].count) == pytest.approx(
        0.5 * sum(gold) / len(gold)
    )
    counts = method.counts(here)
    assert int(counts["kd"]) == int(counts["label"]) == len(gold)
    assert "label" not in DistiLLM().counts(here)


def test_corpus_is_looked_at_as_another_batch():
    here = Batch(**texts(4), corpus=Batch(**texts(2, seed=5)))
    found = DistiLLM(corpus=2.0).terms(None, Shown(sides(0)), Shown(sides(1)), here, None)
    gold = [
        -float((sides(0)[b, i] * 0.5).log_softmax(-1)[here.corpus.y[b, i + 1]])
        for b in range(2)
        for i in range(CONTEXT - 1)
        if here.corpus.y[b, i + 1] != IGNORED
    ]
    assert float(found["corpus"].sum) == pytest.approx(2 * sum(gold))
    assert int(DistiLLM().counts(here)["corpus"]) == len(gold)


def test_decisions_at_the_corners():
    assert all(decided(r, 0.0, 1.0, False) == "data" for r in (0.0, 0.5, 0.99))
    assert all(decided(r, 1.0, fresh("decreasing", 0.0), True) == "student" for r in (0.0, 0.99))
    assert all(decided(r, 1.0, fresh("decreasing", 1.0), True) == "replay" for r in (0.0, 0.99))
    assert decided(0.3, 0.4, 0.0, False) == "student"  # there is room
    assert fresh("constant", 0.7) == 0.5
    assert fresh("increasing", 0.7) == 0.7


def scheduler(**fields):
    method = DistiLLM(**{"new": 4, "every": 2, "replay": 6, **fields})
    made = task()
    return Scheduler(method, made, Epochs(texts(16)), made.data["text"])


def clock(step=0):
    return Clock(0, "fit", step, 20, 4, batch=4, draw=step)


def test_threshold_rises_with_the_loss_on_valid(monkeypatch):
    losses = iter([3.0, 3.05, 3.1, 3.15, 3.3, 2.0, 9.0])
    monkeypatch.setattr(distillm, "measure", lambda *_: next(losses))
    batches, seen = scheduler(phi=0.0, rise=0.4, slack=0.1), []
    for step in range(0, 14, 2):
        batches.watch(model(), clock(step))
        batches.watch(model(), clock(step))  # a further micro-batch of the same step
        batches.watch(model(), clock(step + 1))  # not yet time
        seen.append(batches.phi)
    # 3.1 and then 3.3 are at least 0.1 above the last rise (3.0, 3.1); 9 fills it up to 1
    assert seen == pytest.approx([0.0, 0.0, 0.4, 0.4, 0.8, 0.8, 1.0])


def test_what_was_written_is_kept_after_the_step_and_drawn():
    batches = scheduler(phi=1.0, ratio="increasing", replay=8)
    taught, student = Taught(batches.method, batches), model()
    for step in range(2):
        made = batches(student, None, clock(step))
        assert len(batches.kept) == 4 * step
        taught.after_step(None, taught.observe(None, None, None, made), clock(step))
    drawn = batches(student, None, clock(2))  # it is full now, and the share is small
    assert "written" not in drawn
    assert bool(drawn.changed.all())
    kept = {
        tuple(row.tolist())
        for row in batches.kept.state()["ids"].split(batches.kept.state()["lengths"].tolist())
    }
    for ids, there in zip(drawn.x["ids"], drawn.x["mask"].bool(), strict=True):
        assert tuple(ids[there].tolist()) in kept
    again = scheduler(phi=0.0, ratio="increasing", replay=8)
    again.load(batches.state())
    assert again.phi == 1.0
    assert torch.equal(again(student, None, clock(2)).x["ids"], drawn.x["ids"])


def test_data_alone_where_phi_stays_zero():
    one = limbeck.run("distillm", task(steps=4), slack=1e9)
    generated = limbeck.run("distillm", task(steps=4), slack=1e9, phi=1.0, new=4)
    pairs = zip(one.model.parameters(), generated.model.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_a_valid_set_is_needed():
    made = task()
    made.valid = None
    with pytest.raises(Missing, match="no set 'valid'"):
        limbeck.run("distillm", made)
