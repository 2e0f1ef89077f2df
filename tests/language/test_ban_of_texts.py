"""ban on language models: its terms by loops, a step by hand, and generations."""

from dataclasses import replace

import pytest
import torch
from toys import CONTEXT, VOCAB, model, task, texts

import limbeck
from limbeck.core.data import Batch
from limbeck.core.signals import Dense
from limbeck.core.task import Budget, Optimiser
from limbeck.core.text.places import IGNORED
from limbeck.errors import UsageError
from limbeck.vision.ban import BAN, Texts

pytestmark = pytest.mark.xdist_group("language")


class Shown:
    def __init__(self, z):
        self.signal = Dense(z)


def test_terms_by_loops():
    batch = Batch(**texts(3, seed=5))
    s, t = torch.randn(2, 3, CONTEXT, VOCAB, generator=torch.Generator().manual_seed(1))
    label, ban, places = 0.0, 0.0, 0
    for b in range(3):
        for i in range(CONTEXT - 1):
            token = int(batch.y[b, i + 1])
            if token != IGNORED:
                p, q = (z[b, i].double().softmax(-1) for z in (t, s))
                label, places = label - float(q[token].log()), places + 1
                ban += float((p * (p / q).log()).sum())
    out = Texts(BAN(label=0.5, ban=2.0)).terms(None, Shown(s), Shown(t), batch, None)
    assert float(out["label"].sum) == pytest.approx(0.5 * label, rel=1e-5)
    assert float(out["ban"].sum) == pytest.approx(2 * ban, rel=1e-5)
    counts = Texts(BAN(label=0.5)).counts(batch)
    assert {n: int(c) for n, c in counts.items()} == {"label": places, "ban": places}
    assert set(Texts(BAN()).terms(None, Shown(s), Shown(t), batch, None)) == {"ban"}


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_each_generation_of_a_language_model_is_taught_by_the_one_before():
    def fresh():  # drawn by the run, so that generations start apart
        net = model()
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
        return net

    given = replace(task(steps=4), student=fresh, teacher=None)
    result = limbeck.run("ban", given, generations=1, label=1.0, device="cpu")
    assert [s["stage"] for s in result.facts["stages"]] == ["generation/0", "generation/1"]
    assert {n for row in result.log for n in row.get("terms", {})} == {"label", "ban"}
    first = limbeck.run("ban", replace(given, teacher=None), generations=1, ban=0.0, label=1.0)
    assert not torch.equal(weights(first.model), weights(result.model))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_step_by_hand(label):
    sgd = Budget(steps=1, batch=4, optimiser=Optimiser("sgd", lr=0.5), schedule="constant")
    given = replace(task(n=4), budget=sgd)
    found = limbeck.run("ban", given, generations=1, label=label, device="cpu").model
    student, data, loss, places = model(), texts(4), 0.0, 0
    ids, mask, y = data["x"]["ids"], data["x"]["mask"], data["y"]
    with torch.no_grad():
        p = given.teacher(input_ids=ids, attention_mask=mask).logits.softmax(-1)
    q = student(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    for b in range(4):
        for i in range(CONTEXT - 1):
            if y[b, i + 1] != IGNORED:
                loss = loss - label * q[b, i, y[b, i + 1]] - (p[b, i] * q[b, i]).sum()
                places += 1
    named = dict(student.named_parameters())
    grads = torch.autograd.grad(loss / places, list(named.values()))
    for (name, before), grad in zip(named.items(), grads, strict=True):
        torch.testing.assert_close(
            found.get_parameter(name), before - 0.5 * grad, atol=1e-5, rtol=1e-4
        )


def test_what_texts_have_not_is_said():
    for fields in ({"mode": "cwtm"}, {"mode": "dkpp"}, {"gives": "ensemble"}):
        with pytest.raises(UsageError, match="for texts; give mode='kd' and gives='last'"):
            limbeck.run("ban", task(), device="cpu", **fields)
