"""MiniLLM: its gradient by enumerating all texts, weights, returns and clipping, and its runs."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from toys import CONTEXT, EOS, PAD, VOCAB, model, task, texts

import limbeck
from limbeck.core.data import Batch, Epochs
from limbeck.core.engine import fit
from limbeck.core.method import Clock
from limbeck.core.objectives import NextTokens
from limbeck.core.run import Run
from limbeck.core.signals import Dense
from limbeck.core.teacher import Setting
from limbeck.core.teachers import Frozen, Nobody
from limbeck.core.text.generate import Written, generate
from limbeck.core.text.places import IGNORED
from limbeck.core.text.replay import prompts_of
from limbeck.errors import UsageError
from limbeck.language.minillm import MiniLLM, Rollouts, Scale, returns, surrogate

pytestmark = pytest.mark.xdist_group("language")

# --- a language of three tokens, of which 0 ends a text, and texts of three tokens at most --------

LONGEST, END = 3, 0
PREFIXES = [p for n in range(LONGEST) for p in itertools.product((1, 2), repeat=n)]
ROW = {prefix: i for i, prefix in enumerate(PREFIXES)}
ALL = [(*p, END) for p in PREFIXES]
ALL += list(itertools.product((1, 2), repeat=LONGEST))
PLAIN = {"normalise": False, "whiten": False, "clip": 0.0, "gamma": 1.0}


class Shown:
    def __init__(self, z):
        self.signal = Dense(z)


def table(seed):
    """Logits after each prefix (7, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PREFIXES), 3, generator=generator, dtype=torch.float64)


def told(z, text):
    """Log-probabilities of a text's tokens."""
    return torch.stack([z[ROW[text[:i]]].log_softmax(-1)[token] for i, token in enumerate(text)])


def mixed(alpha, s, t, text):
    p, q = told(t, text).detach().exp(), told(s, text).detach().exp()
    return (alpha * p + (1 - alpha) * q).log()


def one(method, s, t, text, alpha):
    """The terms of one text after a prompt of one token, through the method's own road."""
    n = len(text)
    y = torch.full((1, 1 + LONGEST), IGNORED)
    y[0, 1 : n + 1] = torch.tensor(text)
    there = torch.arange(LONGEST)[None] < n
    pad = torch.zeros(LONGEST - n, dtype=torch.float64)
    own = torch.stack([torch.cat([told(z, text).detach(), pad])[None] for z in (t, s)])
    logp = torch.cat([mixed(alpha, s, t, text), pad])[None]
    ids = torch.where(y == IGNORED, 0, y)
    written = Written(ids, (y != IGNORED).long(), y, there, logp, own)
    batch = Batch(x={"ids": ids, "mask": ids}, y=y, **method.known(written))
    places = [ROW[text[:i]] for i in range(n)] + [0] * (1 + LONGEST - n)
    return method.terms(None, Shown(s[places][None]), Shown(t[places][None]), batch, None)


def expected(method, s, t, alpha):
    """E over texts of the gradient (7, 3), by the sum over all of them."""
    chances = [float(mixed(alpha, s, t, text).sum().exp()) for text in ALL]
    assert sum(chances) == pytest.approx(1)
    total = 0
    for chance, text in zip(chances, ALL, strict=True):
        total = total + chance * sum(term.sum for term in one(method, s, t, text, alpha).values())
    return torch.autograd.grad(total, s)[0]


def exact(s, t):
    """The gradient of KL(q, p) over whole texts, by its definition."""
    total = 0
    for text in ALL:
        q, p = told(s, text).sum(), told(t, text).sum()
        total = total + q.exp() * (q - p)
    return torch.autograd.grad(total, s)[0]


@pytest.mark.parametrize("single", [1.0, 0.0])
def test_on_policy_the_estimator_has_the_gradient_of_the_kl_of_texts(single):
    s, t = table(0).requires_grad_(), table(1)
    found = expected(MiniLLM(single=single, alpha=0.0, **PLAIN), s, t, 0.0)
    assert torch.allclose(found, exact(s, t), atol=1e-6)


def test_without_the_long_part_the_first_tokens_do_not_hear_of_the_later_ones():
    s, t = table(0).requires_grad_(), table(1)
    found = expected(MiniLLM(long=0.0, alpha=0.0, **PLAIN), s, t, 0.0)
    wished, last = exact(s, t), [len(p) == LONGEST - 1 for p in PREFIXES]
    assert torch.allclose(found[last], wished[last], atol=1e-6)
    assert not torch.allclose(found[ROW[()]], wished[ROW[()]], atol=1e-2)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("gamma", [1.0, 0.6])
@pytest.mark.parametrize("weighted", [True, False])
def test_mixed_sampling_has_the_papers_expectation(normalise, gamma, weighted):
    """With or without the weight of one token on the single-step part it is the same."""
    alpha, s, t = 0.3, table(0).requires_grad_(), table(1)
    total = 0
    for text in ALL:
        chance = float(mixed(alpha, s, t, text).sum().exp())
        w = (told(s, text).detach() - mixed(alpha, s, t, text)).exp()
        r = (told(t, text) - told(s, text)).detach()
        for i in range(len(text)):
            q, p = s[ROW[text[:i]]].softmax(-1), t[ROW[text[:i]]].softmax(-1)
            after = [float(gamma ** (k - i - 1) * r[k]) for k in range(i + 1, len(text))]
            back = sum(after) / (len(after) if normalise and after else 1)
            step = (q * (q / p).log()).sum() * (w[i] if weighted else 1)
            total = total + chance * (step - w[i] * back * told(s, text)[i])
    wished = torch.autograd.grad(total, s)[0]
    how = {**PLAIN, "normalise": normalise, "gamma": gamma}
    assert torch.allclose(expected(MiniLLM(alpha=alpha, **how), s, t, alpha), wished, atol=1e-6)


def test_gradient_of_the_single_step_in_closed_form():
    s, t = table(0).requires_grad_(), table(1)
    terms = one(MiniLLM(long=0.0, single=2.0), s, t, (1, END), 0.2)
    assert set(terms) == {"single"}
    found = torch.autograd.grad(terms["single"].sum, s)[0]
    for prefix in PREFIXES:
        q, p = s[ROW[prefix]].detach().softmax(-1), t[ROW[prefix]].softmax(-1)
        gap = (q / p).log()
        wished = 2 * q * (gap - (q * gap).sum()) if prefix in ((), (1,)) else 0 * q
        assert torch.allclose(found[ROW[prefix]], wished)


# --- the pieces -----------------------------------------------------------------------------------


def test_weights_by_hand():
    quarter, half, whole = (math.log(v) for v in (0.25, 0.5, 0.9))
    own = torch.tensor([[[half, 0.0]], [[quarter, whole]]])
    own[0, 0, 1] = math.log(0.1)
    logp = torch.tensor([[math.log(0.2 * 0.5 + 0.8 * 0.25), math.log(0.2 * 0.1 + 0.8 * 0.9)]])
    y = torch.tensor([[IGNORED, 4, 5]])
    found = MiniLLM().known(Written(y, y, y, torch.ones(1, 2, dtype=torch.bool), logp, own))
    assert found["weight"].tolist()[0] == pytest.approx([0, 0.25 / 0.3, 0.9 / 0.74])
    assert found["old"].tolist()[0] == pytest.approx([0, quarter, whole])
    assert found["returns"].tolist()[0] == pytest.approx([0, math.log(0.1 / 0.9), 0])


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_returns_by_loops(own, normalise, gamma):
    lengths = [6, 1, 4]
    there = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    r = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).masked_fill(~there, 0)
    found = returns(r, there, gamma, normalise, own=own)
    for b, length in enumerate(lengths):
        for i in range(6):
            ks = range(i if own else i + 1, length) if i < length else ()
            total = sum(gamma ** (k - ks[0]) * float(r[b, k]) for k in ks)
            value = total / len(ks) if normalise and len(ks) else total
            assert float(found[b, i]) == pytest.approx(value, abs=1e-6)


def test_clipping():
    log_ratio = torch.tensor([0.7, 1.1, 1.3, 0.7, 1.1, 1.3]).log().requires_grad_()
    advantage = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    loss = surrogate(log_ratio.exp(), advantage, 0.2)
    # what is better than its goes no further up, what is worse no further down
    assert loss.tolist() == pytest.approx([-1.4, -2.2, -2.4, 1.6, 2.2, 2.6])
    found = torch.autograd.grad(loss.sum(), log_ratio)[0]
    assert found.tolist() == pytest.approx([-1.4, -2.2, 0, 0, 2.2, 2.6])
    free = torch.autograd.grad(surrogate(log_ratio.exp(), advantage, 0.0).sum(), log_ratio)[0]
    assert free.tolist() == pytest.approx([-1.4, -2.2, -2.6, 1.4, 2.2, 2.6])


def test_whitening_of_what_the_whole_step_saw():
    method, parts = MiniLLM(), Scale()
    seen = torch.tensor([1.0, 2.0, 6.0])
    method.after_step(parts, {"returns": seen}, None)
    assert float(parts.mean) == pytest.approx(3)
    assert float(parts.deviation) == pytest.approx(math.sqrt(14 / 3))
    method.after_step(parts, {}, None)  # after the step nothing was seen
    assert float(parts.mean) == pytest.approx(3)
    assert [p.name for p in method.update()] == ["look", "policy"]
    assert [p.repeat for p in MiniLLM(whiten=False, inner=3).update()] == [3]


# --- on models ------------------------------------------------------------------------------------


def clock(step=0, n=0, of=1):
    return Clock(0, "fit", step, 50, 4, n=n, of=of, batch=4, draw=step)


def rollouts(**fields):
    method = MiniLLM(**{"new": 5, "least": 2, **fields})
    return Rollouts(method, Epochs(texts(16)), task().data["text"])


def teacher():
    return Frozen(model(2, 24, seed=1)).attach(Setting())


def logs(module, made):
    """Log-probabilities of the labels at their places, 0 elsewhere, by one plain pass."""
    with torch.no_grad():
        z = module(input_ids=made.x["ids"], attention_mask=made.x["mask"]).logits.log_softmax(-1)
    out = torch.zeros(made.y.shape)
    for b, i in (made.y != IGNORED).nonzero().tolist():
        out[b, i] = z[b, i - 1, made.y[b, i]]
    return out


def test_rollouts_know_what_a_plain_pass_says():
    student, taught = model(), teacher()
    made = rollouts(alpha=0.4, gamma=1.0)(student, taught, clock(3))
    q, p = logs(student, made), logs(taught.module, made)
    assert torch.allclose(made.old, q, atol=1e-5)
    w = (q.exp() / (0.4 * p.exp() + 0.6 * q.exp())).masked_fill(made.y == IGNORED, 0)
    assert torch.allclose(made.weight, w, atol=1e-4)
    for b in range(4):
        at = (made.y[b] != IGNORED).nonzero().flatten().tolist()
        for i in at:
            after = [float(p[b, k] - q[b, k]) for k in at if k > i]
            mean = sum(after) / len(after) if after else 0
            assert float(made.returns[b, i]) == pytest.approx(mean, abs=1e-4)
    assert bool(made.changed.all())


def test_alpha_zero_is_on_policy():
    student, batches = model(), rollouts(alpha=0.0)
    made = batches(student, teacher(), clock(2))
    data = Epochs(texts(16))(student, None, clock(2))
    ids, mask = prompts_of(data, 5, CONTEXT, PAD, 2)
    draws = clock(2).rng("write", data.index)
    alone = generate((student,), ids, mask, new=5, draws=draws, eos=(EOS,), pad=PAD, vocab=VOCAB)
    assert torch.equal(made.x["ids"], alone.ids)
    assert torch.allclose(made.weight[made.y != IGNORED], torch.ones(()), atol=1e-6)
    other = rollouts(alpha=0.9)(student, teacher(), clock(2))
    assert not torch.equal(made.x["ids"], other.x["ids"])


def test_micro_batches_are_the_cuts_of_the_batch():
    student, whole = model(), rollouts()(model(), teacher(), clock(2))
    for n in range(2):
        part = rollouts()(student, teacher(), clock(2, n, 2))
        width = part.y.shape[1]
        assert torch.equal(part.y, whole.y[2 * n : 2 * n + 2, :width])
        assert torch.allclose(part.returns, whole.returns[2 * n : 2 * n + 2, :width], atol=1e-5)


def test_later_steps_on_the_same_texts_by_loops():
    made, z = rollouts()(model(), teacher(), clock(1)), torch.randn(4, 40, VOCAB)
    parts, method = Scale(), MiniLLM(long=3.0, clip=0.3)
    method.after_step(parts, method.observe(None, None, None, made), None)
    z = z[:, : made.y.shape[1]]
    found = method.terms(parts, Shown(z), Shown(z), made, None)["long"]
    places = (made.y != IGNORED).nonzero().tolist()
    all_ = [float(made.returns[b, i]) for b, i in places]
    mean = sum(all_) / len(all_)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in all_) / len(all_))
    total = 0
    for b, i in places:
        now = float(z[b, i - 1].log_softmax(-1)[made.y[b, i]])
        rho = math.exp(now - float(made.old[b, i])) * float(made.weight[b, i])
        a = (float(made.returns[b, i]) - mean) / deviation
        total += max(-a * rho, -a * min(max(rho, 0.7), 1.3))
    assert float(found.sum) == pytest.approx(3 * total, rel=1e-3)
    assert int(found.count) == int(method.counts(made)["long"]) == len(places)


def test_corpus_is_looked_at_as_another_batch():
    made = rollouts()(model(), teacher(), clock()).replace(corpus=Batch(**texts(2, seed=5)))
    z = torch.randn(*made.y.shape, VOCAB)
    whole = torch.randn(2, CONTEXT, VOCAB)

    class Two(Shown):
        def __call__(self, batch):
            return Shown(whole)

    found = MiniLLM(corpus=2.0).terms(Scale(), Two(z), Shown(z), made, None)
    gold = [
        -float(whole[b, i].log_softmax(-1)[made.corpus.y[b, i + 1]])
        for b in range(2)
        for i in range(CONTEXT - 1)
        if made.corpus.y[b, i + 1] != IGNORED
    ]
    assert float(found["corpus"].sum) == pytest.approx(2 * sum(gold), rel=1e-5)
    assert int(MiniLLM().counts(made)["corpus"]) == len(gold)
    assert float(found["single"].sum) == pytest.approx(0, abs=1e-4)


def test_the_corpus_may_bring_the_teachers_distribution():
    made = rollouts()(model(), teacher(), clock()).replace(corpus=Batch(**texts(2, seed=5)))
    z, one, two = torch.randn(*made.y.shape, VOCAB), *torch.randn(2, 2, CONTEXT, VOCAB)

    class Twice(Shown):
        def __init__(self, other):
            super().__init__(z)
            self.other = other

        def __call__(self, batch):
            assert batch is made.corpus
            return Shown(self.other)

    method = MiniLLM(corpus=0.5, corpus_kd=0.5)
    found = method.terms(Scale(), Twice(one), Twice(two), made, None)
    slow, places = 0.0, 0
    for b in range(2):
        for i in range(CONTEXT - 1):
            if made.corpus.y[b, i + 1] != IGNORED:
                p, q = two[b, i].double().softmax(-1), one[b, i].double().softmax(-1)
                slow, places = slow + float((p * (p / q).log()).sum()), places + 1
    assert float(found["corpus_kd"].sum) == pytest.approx(0.5 * slow, rel=1e-5)
    assert int(found["corpus_kd"].count) == int(method.counts(made)["corpus_kd"]) == places
    plain = MiniLLM(corpus=0.5).terms(Scale(), Twice(one), Twice(two), made, None)
    assert "corpus_kd" not in plain
    assert all(torch.equal(found[n].sum, plain[n].sum) for n in plain)


def test_tuning_before_is_a_fit_on_the_datas_own_texts():
    how = {"new": 5, "least": 2, "inner": 2}
    made = task(steps=6)
    result = limbeck.run("minillm", made, tune=0.5, **how)
    stages = [(s["stage"], s["steps"]) for s in result.facts["stages"]]
    assert stages == [("fit/tune", 3), ("fit", 6)]
    assert {row["stage"] for row in result.log if "terms" in row} == {"fit/tune", "fit"}
    # The same in two runs: fine-tuned with the best on valid kept, then taught.
    budget = replace(made.budget, steps=3, keep="best")
    with Run(made, device="cpu") as run:
        student = run.student(made)
        fit(NextTokens(), student, Nobody(), made.batches(), name="fit/tune", budget=budget)
    again = limbeck.run("minillm", replace(made, student=lambda: student), **how)
    assert torch.equal(weights(again), weights(result))
    assert not torch.equal(weights(limbeck.run("minillm", task(steps=6), **how)), weights(result))
    for epochs, want in ((None, 2.5), (4.0, 1.0)):
        given = replace(made, valid=None, budget=replace(made.budget, steps=None, epochs=epochs))
        budget = MiniLLM(tune=0.25)._tuning(given)
        assert (budget.epochs, budget.keep) == (want, "last")


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


def test_accumulation_changes_nothing():
    how = {"new": 5, "least": 2, "inner": 2}
    found = [
        weights(limbeck.run("minillm", task(steps=4, budget={"accumulate": of}), **how))
        for of in (1, 2)
    ]
    assert torch.allclose(*found, atol=2e-4)
    assert not torch.equal(found[0], weights(limbeck.run("minillm", task(steps=1), **how)))


class Stop(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_exactly(tmp_path):
    def stopping(stage, done):
        if done == 4:
            raise Stop

    method, made = MiniLLM(new=5, least=2, inner=2), task(steps=7)
    with Run(folder=tmp_path / "whole", device="cpu", checkpoint=3):
        whole = weights(method.run(made))
    with (
        pytest.raises(Stop),
        Run(folder=tmp_path / "cut", device="cpu", checkpoint=3, after_step=stopping),
    ):
        method.run(made)
    with Run(folder=tmp_path / "cut", device="cpu", checkpoint=3):
        assert torch.equal(weights(method.run(made)), whole)


def reverse_kl(student, taught):
    """KL(q, p) of a text, over what the student writes."""
    ids = texts(128, seed=9)["x"]["ids"][:, :4]
    written = generate(
        (student, taught),
        ids,
        torch.ones_like(ids),
        new=6,
        draws=clock().rng("judge", torch.arange(128)),
        eos=(EOS,),
        pad=PAD,
        weights=(1.0, 0.0),
        own=True,
    )
    return float((written.own[0] - written.own[1]).sum(1).mean())


def test_a_run_lowers_the_reverse_kl_of_texts():
    taught = model(2, 24, seed=1)
    made = task(steps=30, batch=8, n=32, data={"corpus": texts(16, seed=4)})
    result = limbeck.run("minillm", made, new=6, least=2)
    assert type(result.model).__name__ == "LlamaForCausalLM"
    assert set(result.log[0]["terms"]) == {"single", "long", "corpus"}
    bare = limbeck.run("minillm", task(steps=30, batch=8, n=32), new=6, least=2)
    assert set(bare.log[0]["terms"]) == {"single", "long"}
    assert reverse_kl(bare.model, taught) < 0.75 * reverse_kl(model(), taught)


def test_sentences():
    with pytest.raises(UsageError, match=f"context of {CONTEXT}"):
        limbeck.run("minillm", task(), new=CONTEXT)
    with pytest.raises(UsageError, match="needs a live one"):
        rollouts()(model(), None, clock())
    net = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="is for text"):
        limbeck.run("minillm", limbeck.Task(net, net, (torch.zeros(8, 2), torch.zeros(8).long())))
