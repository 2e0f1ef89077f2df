"""ULD: sorted probabilities by loops, permutations and a linear programme; whose places pair."""

import itertools

import numpy as np
import pytest
import torch
from toys import CONTEXT, EOS, PAD, VOCAB, task, texts

from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.objectives import NextTokens
from limbeck.core.run import Run
from limbeck.core.signals import Dense, Head, Linear
from limbeck.core.text.places import IGNORED
from limbeck.core.text.view import Causal
from limbeck.errors import UsageError
from limbeck.language import uld
from limbeck.language.uld import ULD, distance, paired

pytestmark = pytest.mark.xdist_group("language")
OTHER = 13  # tokens of the teacher


class Shown:
    def __init__(self, signal):
        self.signal = signal if not isinstance(signal, torch.Tensor) else Dense(signal)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two(n=4, seed=0, width=11):
    """Texts, and the same ones in the teacher's tokens: a token there is one or two of ours."""
    mine = texts(n, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    t_ids = torch.randint(2, OTHER, (n, width), generator=generator)
    lengths = torch.randint(5, width + 1, (n, 1), generator=generator)
    t_mask = (torch.arange(width) < lengths).long()
    wanted = torch.arange(width) >= torch.randint(1, 4, (n, 1), generator=generator)
    t_wanted = wanted & (torch.arange(width) < lengths - 1)
    x = {**mine["x"], "t_ids": t_ids * t_mask, "t_mask": t_mask, "t_wanted": t_wanted}
    return {"x": x, "y": mine["y"]}


# --- the distance --------------------------------------------------------------------------------


def test_the_worked_number():
    q, p = torch.tensor([[0.2, 0.8]]).double(), torch.tensor([[0.7, 0.3]]).double()
    assert float(distance(q, p)) == pytest.approx(abs(0.8 - 0.7) + abs(0.2 - 0.3))
    padded = torch.tensor([[0.0, 0.3, 0.0, 0.7]]).double()
    assert float(distance(q, padded)) == pytest.approx(0.2)


def test_permutations_change_nothing_and_zero_means_the_same_sorted_vectors():
    q, p = drawn(3, 7).softmax(-1), drawn(3, 5, seed=1).softmax(-1)
    found = distance(q, p)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        one, other = torch.randperm(7, generator=generator), torch.randperm(5, generator=generator)
        assert torch.allclose(distance(q[:, one], p[:, other]), found)
        assert torch.allclose(distance(q[:, one], q), torch.zeros(3).double())
    assert bool((found > 0.01).all())
    assert bool((found <= 2).all())
    sharp = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.full((1, 4), 0.25)
    assert float(distance(*sharp)) == 1.5


def test_twice_the_transport_with_a_uniform_cost_after_the_best_renaming():
    optimize = pytest.importorskip("scipy.optimize", reason="needs scipy")
    q, p = drawn(4).softmax(-1).numpy(), drawn(4, seed=1).softmax(-1).numpy()
    cost = (1 - np.eye(4)).ravel()
    rows = np.kron(np.eye(4), np.ones(4))
    columns = np.kron(np.ones(4), np.eye(4))
    least = min(
        optimize.linprog(
            cost, A_eq=np.concatenate([rows, columns]), b_eq=np.concatenate([q, p[list(order)]])
        ).fun
        for order in itertools.permutations(range(4))
    )
    found = distance(torch.tensor(q)[None], torch.tensor(p)[None])
    assert float(found) == pytest.approx(2 * least, abs=1e-7)


def test_the_largest_alone():
    q, p = drawn(3, 9).softmax(-1), drawn(3, 4, seed=1).softmax(-1)
    one, other = (-np.sort(-x.numpy(), axis=-1) for x in (q, p))
    other = np.pad(other, ((0, 0), (0, 5)))
    for top in (1, 3, 6, 9, 50):
        found = distance(q, p, top)
        assert np.allclose(found, np.abs(one - other)[:, :top].sum(-1))
    assert torch.equal(distance(q, p, 9), distance(q, p))


def test_gradient_is_that_of_differences():
    p = drawn(2, 4, seed=1).softmax(-1)
    for top in (0, 3):
        assert torch.autograd.gradcheck(
            lambda z, top=top: distance(z.softmax(-1), p, top), drawn(2, 6).requires_grad_()
        )


# --- places --------------------------------------------------------------------------------------


def test_places_of_an_answer_pair_in_their_order():
    y = torch.full((3, 6), IGNORED)
    y[0, 2:6] = 5  # places 1, 2, 3, 4
    y[1, 3:5] = 5  # places 2, 3
    y[2, 1] = 5  # place 0 alone: nothing is left without its end
    wanted = torch.zeros(3, 5, dtype=torch.bool)
    wanted[0, 1:3] = wanted[1, 0:4] = wanted[2, 2:4] = True
    here = Batch(x={"ids": y, "t_wanted": wanted}, y=y)
    both = [[row.nonzero()[:, 0].tolist() for row in m] for m in paired(here)]
    assert both == [[[1, 2], [2, 3], [0]], [[1, 2], [0, 1], [2]]]
    both = [[row.nonzero()[:, 0].tolist() for row in m] for m in paired(here, s_end=False)]
    assert both == [[[1, 2], [2], []], [[1, 2], [0], []]]
    both = [[row.nonzero()[:, 0].tolist() for row in m] for m in paired(here, t_end=False)]
    assert both == [[[1], [2, 3], [0]], [[1], [0, 1], [2]]]
    counts = ULD().counts(here)
    assert (int(counts["uld"]), int(counts["label"])) == (2, 7)
    assert int(ULD(per="token").counts(here)["uld"]) == 3


# --- the terms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["text", "token"])
@pytest.mark.parametrize(("s_end", "t_end"), [(False, True), (True, True), (True, False)])
def test_loss_by_loops(per, s_end, t_end):
    s, t, here = drawn(4, CONTEXT, VOCAB), drawn(4, 11, OTHER, seed=1), Batch(**two())
    how = ULD(uld=3.0, label=0.5, tau=1.5, t_tau=0.7, s_end=s_end, t_end=t_end, per=per)
    found = how.terms(None, Shown(s), Shown(t), here, None)
    each, gold = [], []
    for b in range(4):
        mine = [i for i in range(CONTEXT - 1) if here.y[b, i + 1] != IGNORED]
        theirs = [i for i in range(11) if here.x["t_wanted"][b, i]]
        gold += [-float(s[b, i].log_softmax(-1)[here.y[b, i + 1]]) for i in mine]
        mine, theirs = mine[: None if s_end else -1], theirs[: None if t_end else -1]
        row = []
        for i, j in zip(mine, theirs, strict=False):
            q = sorted((s[b, i] / 1.5).softmax(-1).tolist(), reverse=True)
            p = sorted((t[b, j] / 0.7).softmax(-1).tolist(), reverse=True)
            row.append(sum(abs(a - c) for a, c in itertools.zip_longest(q, p, fillvalue=0.0)))
        each.append(row)
    assert len({len(row) for row in each}) > 1
    mean = (
        sum(sum(r) / len(r) for r in each) / 4
        if per == "text"
        else sum(map(sum, each)) / sum(map(len, each))
    )
    assert float(found["uld"].sum / found["uld"].count) == pytest.approx(3 * mean)
    assert float(found["label"].sum / found["label"].count) == pytest.approx(
        0.5 * sum(gold) / len(gold)
    )
    assert {n: int(c) for n, c in how.counts(here).items()} == {
        n: int(m.count) for n, m in found.items()
    }


def test_a_few_places_at_a_time_are_the_same_and_so_are_gradients(monkeypatch):
    here, head = Batch(**two()), drawn(VOCAB, 6, seed=2).requires_grad_()
    hidden, t = drawn(4, CONTEXT, 6).requires_grad_(), drawn(4, 11, OTHER, seed=1)
    seen = []
    for entries in (10**6, 3 * VOCAB):
        monkeypatch.setattr(uld, "ENTRIES", entries)
        side = Shown(Linear(hidden, Head(head)))
        loss = ULD(label=0.0).terms(None, side, Shown(t), here, None)["uld"].sum
        for _ in range(2):  # a graph that is kept is used twice
            found = torch.autograd.grad(loss, [hidden, head], retain_graph=True)
            seen.append([loss.detach(), *found])
    for more in seen[1:]:
        assert all(torch.allclose(a, b) for a, b in zip(seen[0], more, strict=True))
    assert float(seen[0][1].abs().max()) > 0


def test_one_tokenizer_and_the_teacher_itself():
    here = Batch(**texts(4))
    z = drawn(4, CONTEXT, VOCAB)
    found = ULD(s_end=True).terms(None, Shown(z), Shown(z), here, None)
    assert float(found["uld"].sum) == 0.0
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(3))
    found = ULD(s_end=True).terms(None, Shown(z), Shown(z[..., order]), here, None)
    assert float(found["uld"].sum) == pytest.approx(0.0, abs=1e-12)


def test_a_weight_of_zero_is_not_computed():
    here = Batch(**two())
    assert set(ULD(uld=0.0).terms(None, Shown(drawn(4, CONTEXT, VOCAB)), None, here, None)) == {
        "label"
    }


def test_a_teacher_that_reads_the_students_tokens_is_refused():
    here = Batch(**two(4))
    z = drawn(4, CONTEXT, VOCAB)
    with pytest.raises(UsageError, match=r"the teacher shows \(4, 5\) places .* side='t_'"):
        ULD().terms(None, Shown(z), Shown(z[:, :5]), here, None)


# --- a run ---------------------------------------------------------------------------------------


def other_teacher(seed=1):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=OTHER, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=None,
        eos_token_id=EOS, pad_token_id=PAD, initializer_range=0.6,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def crossed(**more):
    made = task(teacher=other_teacher(), **more)
    made.train, made.valid, made.test = two(16), two(6, 1), two(6, 2)
    made.readers = {"student": Causal(VOCAB), "teacher": Causal(OTHER, side="t_")}
    return made


def ran(method, made):
    with Run(made, seed=0):
        return method.run(made)


def test_a_run_with_a_teacher_of_other_tokens():
    result = ran(ULD(label=0.0), crossed(steps=40))
    terms = [row["terms"]["uld"] for row in result.log]
    assert sum(terms[-5:]) < 0.8 * sum(terms[:5])
    assert type(result.model).__name__ == "LlamaForCausalLM"


def test_weight_zero_is_plain_training_on_the_text():
    first, other = (ran(how, crossed(steps=6)) for how in (ULD(uld=0.0), ULD()))
    made = task(steps=6)
    made.train = {**two(16), "x": {n: two(16)["x"][n] for n in ("ids", "mask")}}
    with Run(made, seed=0) as run:
        student, teacher = run.student(made), made.the_teacher()
        plain = fit(NextTokens(), student, teacher, made.batches(), name="fit", task=made)
    weights = dict(plain.student.named_parameters())
    assert all(torch.equal(p, weights[n]) for n, p in first.model.named_parameters())
    assert not all(torch.equal(p, weights[n]) for n, p in other.model.named_parameters())
