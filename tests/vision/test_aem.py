"""aem: the penalty's values, bounds and gradient, instances left out, and what DSMIL ships."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.objectives import Labels
from limbeck.core.rng import Draws
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision.aem import AEM, Averaged, attention_entropy_penalty, subsampled

pytestmark = pytest.mark.xdist_group("aem")

G = torch.Generator().manual_seed(3)
SCORES = 2 * torch.randn(4, 3, 7, generator=G, dtype=torch.float64)
Z = torch.randn(4, 2, generator=G, dtype=torch.float64)
EACH = torch.randn(4, 7, 2, generator=G, dtype=torch.float64)
Y = torch.tensor([0, 1, 1, 0])
CLOCK = Clock(0, "fit", 3, 10, 5)


def terms(method: AEM, **shown: Any) -> dict[str, Tensor]:
    return method.terms(nn.Module(), SimpleNamespace(**shown), None, Batch(x=Z, y=Y), CLOCK)


# --- the penalty ---------------------------------------------------------------------------------


def test_values_by_hand() -> None:
    alpha = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64)
    by_hand = 0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)
    assert by_hand == pytest.approx(-0.801819, abs=1e-6)
    assert float(attention_entropy_penalty(alpha.log())) == pytest.approx(by_hand, abs=1e-12)
    one_hot = torch.tensor([[[0.0, 500.0, 0.0]]])
    assert float(attention_entropy_penalty(one_hot)) == 0


def test_a_sum_over_instances_and_a_mean_over_bags_and_rows() -> None:
    slow = [-entropy(softmax(row)) for bag in SCORES.tolist() for row in bag]
    assert float(attention_entropy_penalty(SCORES)) == pytest.approx(sum(slow) / 12, abs=1e-12)


@pytest.mark.parametrize("n", [1, 5, 1000])
def test_equal_scores_are_its_least_with_no_gradient(n: int) -> None:
    a = torch.full((2, 1, n), 3.25, dtype=torch.float64, requires_grad=True)
    penalty = attention_entropy_penalty(a)
    assert penalty.item() == pytest.approx(-math.log(n), abs=1e-12)
    (grad,) = torch.autograd.grad(penalty, a)
    torch.testing.assert_close(grad, torch.zeros_like(a), atol=1e-14, rtol=0)
    assert float(attention_entropy_penalty(a + torch.randn(2, 1, n, generator=G))) > penalty or (
        n == 1
    )


def test_a_constant_and_the_order_make_no_difference() -> None:
    want = attention_entropy_penalty(SCORES)
    turned = SCORES[..., torch.randperm(7, generator=G)]
    torch.testing.assert_close(attention_entropy_penalty(SCORES + 11.5), want)
    torch.testing.assert_close(attention_entropy_penalty(turned), want)


def test_its_gradient_is_the_closed_form() -> None:
    a = SCORES.clone().requires_grad_()
    (grad,) = torch.autograd.grad(attention_entropy_penalty(a), a)
    alpha = torch.exp(SCORES) / torch.exp(SCORES).sum(-1, keepdim=True)
    each = (alpha * alpha.log()).sum(-1, keepdim=True)
    torch.testing.assert_close(grad, alpha * (alpha.log() - each) / 12)


@pytest.mark.parametrize("absent", [-1e9, -math.inf])
def test_instances_that_are_not_there_count_for_nothing(absent: float) -> None:
    more = torch.cat((SCORES, torch.full((4, 3, 2), absent).double()), -1).requires_grad_()
    penalty = attention_entropy_penalty(more)
    torch.testing.assert_close(penalty, attention_entropy_penalty(SCORES))
    (grad,) = torch.autograd.grad(penalty, more)
    assert grad.isfinite().all()
    assert not grad[..., 7:].any()


def test_of_the_largest_alone() -> None:
    slow = []
    for row in SCORES.flatten(0, 1).tolist():
        largest = sorted(softmax(row))[-3:]
        slow.append(-entropy([p / sum(largest) for p in largest]))
    assert float(attention_entropy_penalty(SCORES, 3)) == pytest.approx(sum(slow) / 12, abs=1e-12)
    assert torch.equal(attention_entropy_penalty(SCORES, 99), attention_entropy_penalty(SCORES))


# --- instances left out --------------------------------------------------------------------------


def test_a_thinner_mask_holds_the_share_of_each_bag() -> None:
    sizes = torch.tensor([10, 7, 1, 3])
    mask = torch.arange(10) < sizes[:, None]
    x = {"x": torch.zeros(4, 10, 2), "mask": mask}
    draws = Draws(torch.arange(4), "here")
    thin = subsampled(x, 0.8, draws)["mask"]
    assert thin.sum(1).tolist() == [8, 5, 1, 2]  # int(0.8 n), but at least 1
    assert not (thin & ~mask).any()
    assert torch.equal(x["mask"], mask)  # what was given is as it was
    # A bag's draw depends neither on its neighbours nor on how far bags are filled up.
    alone = {"x": torch.zeros(1, 7, 2), "mask": torch.ones(1, 7, dtype=torch.bool)}
    again = subsampled(alone, 0.8, Draws(torch.tensor([1]), "here"))["mask"]
    assert torch.equal(again[0], thin[1, :7])


def test_each_instance_is_kept_as_often_as_the_share_says() -> None:
    mask = torch.ones(4000, 5, dtype=torch.bool)
    thin = subsampled({"x": mask, "mask": mask}, 0.8, Draws(torch.arange(4000), "place"))["mask"]
    assert thin.double().mean(0).tolist() == pytest.approx([0.8] * 5, abs=0.03)


def test_rows_of_full_bags_are_taken_once_each() -> None:
    x = torch.arange(20.0).view(2, 10, 1)
    thin = subsampled(x, 0.55, Draws(torch.tensor([4, 9]), "place"))
    assert thin.shape == (2, 5, 1)
    for row, whole in zip(thin, x, strict=True):
        assert len(set(row.flatten().tolist()) & set(whole.flatten().tolist())) == 5


def test_the_student_sees_some_and_another_teacher_all() -> None:
    batch = Batch(x=torch.randn(4, 10, 3, generator=G), y=Y, index=torch.arange(4))
    seen, whole = AEM(subsample=0.5).prepare(batch, CLOCK.rng)
    assert seen.x.shape == (4, 5, 3)
    assert whole is batch
    assert AEM().prepare(Batch(x=batch.x, y=Y), CLOCK.rng)[0].x is batch.x  # asks no index


# --- terms, and what ships -----------------------------------------------------------------------


def test_without_the_penalty_it_is_the_loss_on_labels() -> None:
    mine = terms(AEM(entropy=0.0), logits=Z)
    theirs = Labels().terms(nn.Module(), SimpleNamespace(logits=Z), None, Batch(x=Z, y=Y), CLOCK)
    assert list(mine) == ["label"]
    assert torch.equal(mine["label"], theirs["label"])


def test_a_list_of_attentions_counts_as_their_mean() -> None:
    other = SCORES[:, :1].flip(-1) * 3
    got = terms(AEM(entropy=0.5), logits=Z, attention=[SCORES, other])["entropy"]
    both = attention_entropy_penalty(SCORES) + attention_entropy_penalty(other)
    torch.testing.assert_close(got, 0.25 * both)


def test_the_two_streams_of_dsmil() -> None:
    method = AEM(label=0.5, instance=0.5, entropy=0.0)
    got = terms(method, logits=Z, instances=EACH)
    best = [[max(EACH[b, i, c].item() for i in range(7)) for c in range(2)] for b in range(4)]
    slow = [-math.log(softmax(best[b])[y]) for b, y in enumerate(Y.tolist())]
    assert float(got["instance"]) == pytest.approx(0.5 * sum(slow) / 4, rel=1e-6)

    class Both(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": Z, "instances": EACH}

    model = Both()
    assert AEM().deliver(model, nn.Module()) is model
    shipped = method.deliver(model, nn.Module())
    assert isinstance(shipped, Averaged)
    p = (softmax(best, 1) + softmax(Z.numpy(), 1)) / 2
    torch.testing.assert_close(shipped(Z).exp().double(), torch.tensor(p), rtol=1e-6, atol=1e-7)


def test_what_it_cannot_take_is_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"'attention' is \(4, 7\).*\(B, K, N\)"):
        terms(AEM(), logits=Z, attention=SCORES[:, 0])
    for x in (Z, {"x": SCORES}):
        with pytest.raises(UsageError, match="aem subsamples the instances of bags, and x is a"):
            subsampled(x, 0.5, Draws(torch.arange(4), "place"))


# --- a run ---------------------------------------------------------------------------------------


class Pool(nn.Module):
    """Attention by one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.head = nn.Linear(4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.score(x).transpose(1, 2)
        return {"logits": self.head((scores.softmax(-1) @ x)[:, 0]), "attention": scores}


def test_attention_is_wider_the_more_it_weighs() -> None:
    x = torch.randn(32, 12, 4, generator=G)
    y = torch.arange(32) % 2
    x[:, 0, 0] += 3.0 * (2 * y - 1)  # one instance of each bag tells
    budget = Budget(steps=80, batch=16, optimiser=Optimiser("adamw", lr=0.05))
    task = Task(teacher=None, student=Pool, train=(x, y), test=(x, y), budget=budget, classes=2)
    widths = []
    for weight in (0.0, 0.1, 3.0):
        model = limbeck.run("aem", task, entropy=weight).model
        assert model is not None
        with torch.no_grad():
            widths.append(-float(attention_entropy_penalty(model(x)["attention"])))
    assert widths == sorted(widths)
    assert widths[0] < math.log(12) - 0.2
    assert widths[-1] == pytest.approx(math.log(12), abs=0.05)
