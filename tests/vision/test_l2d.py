"""l2d: binary divergences, relations by loops, the decoder head, scores, and both stages."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn

import limbeck
from limbeck.core.score import Score
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import BlackBox
from limbeck.errors import Missing, UsageError
from limbeck.vision import l2d
from limbeck.vision.l2d import L2D, Labelled, mld_loss, relation_loss
from limbeck.vision.l2d.decoder import Decoder, Headed, one_hot
from limbeck.vision.l2d.scores import f1_scores, mean_average_precision

pytestmark = pytest.mark.xdist_group("l2d")
G = torch.Generator().manual_seed(1)


class Shown:
    """A side, or a batch, that shows fixed entries."""

    def __init__(self, **entries: Any) -> None:
        self.__dict__.update(entries)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


# --- logits --------------------------------------------------------------------------------------


def test_mld_is_the_divergence_of_each_labels_two_outcomes() -> None:
    s, t = draw(5, 4).requires_grad_(), draw(5, 4)
    p, q = t.sigmoid(), s.sigmoid()
    slow = torch.zeros(())
    for b in range(5):
        for c in range(4):
            yes, no = p[b, c], 1 - p[b, c]
            slow = slow + yes * (yes / q[b, c]).log() + no * (no / (1 - q[b, c])).log()
    loss = mld_loss(s, t)
    torch.testing.assert_close(loss, slow / 5)
    torch.testing.assert_close(torch.autograd.grad(loss, s)[0], (q - p) / 5)


def test_labels_do_not_meet_but_a_constant_counts() -> None:
    s, t, order = draw(5, 4), draw(5, 4), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(mld_loss(s[:, order], t[:, order]), mld_loss(s, t))
    assert float(mld_loss(t, t)) == 0
    p, q = (t + 3).softmax(1), t.softmax(1)
    torch.testing.assert_close(p, q)  # of all labels together it would be nothing
    assert float(mld_loss(t + 3, t)) > 0.5


def test_sure_answers_stay_finite() -> None:
    s = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = mld_loss(s, -s.detach())
    assert float(loss.detach()) == pytest.approx(400)
    assert torch.autograd.grad(loss, s)[0].tolist() == [[1.0, -1.0]]


# --- embeddings ----------------------------------------------------------------------------------


def by_hand(s: Tensor, t: Tensor) -> Tensor:
    """R of one set of n >= 2 vectors, one pair at a time."""
    n, found = len(s), []
    for e in (s, t):
        apart = torch.stack([torch.stack([(a - b).square().sum() for b in e]) for a in e])
        apart = (apart + torch.eye(n)).sqrt() * (1 - torch.eye(n))
        found.append(apart / (apart.sum() / (n * (n - 1))))
    total = torch.zeros(())
    for i in range(n):
        for j in range(n):
            d = (found[0][i, j] - found[1][i, j]).abs()
            total = total + (0.5 * d * d if d < 1 else d - 0.5)
    return total / n


def test_relations_of_labels_and_of_images_by_loops() -> None:
    s, t = draw(7, 5, 3).requires_grad_(), draw(7, 5, 6)
    y = (torch.rand(7, 5, generator=G) < 0.6).long()
    z = Shown(logits=draw(7, 5), embedding=s), Shown(logits=draw(7, 5), embedding=t)
    y[:, 4] = 0  # a label of no image, and one of a single one
    y[1:, 3] = 0
    method = Labelled(label=2.0, mld=3.0, cd=0.5, id=0.7)
    batch: Any = Shown(y=y, x=y)
    out = method.terms(None, *z, batch, None)  # type: ignore[arg-type]
    cd = [by_hand(s[y[:, c] > 0, c], t[y[:, c] > 0, c]) for c in range(5) if y[:, c].sum() > 1]
    own = [by_hand(s[b, y[b] > 0], t[b, y[b] > 0]) for b in range(7) if y[b].sum() > 1]
    assert len(cd) == 3
    assert len(own) > 3
    torch.testing.assert_close(out["cd"], 0.5 * sum(cd) / 7)
    torch.testing.assert_close(out["id"], 0.7 * sum(own) / 7)
    for name, slow in (("cd", 0.5 * sum(cd) / 7), ("id", 0.7 * sum(own) / 7)):
        fast, slope = (torch.autograd.grad(v, s, retain_graph=True)[0] for v in (out[name], slow))
        torch.testing.assert_close(fast, slope, atol=1e-5, rtol=1e-4)
    bce = F.binary_cross_entropy_with_logits(z[0].logits, y.float(), reduction="sum") / 7
    torch.testing.assert_close(out["label"], 2 * bce)
    torch.testing.assert_close(out["mld"], 3 * mld_loss(z[0].logits, z[1].logits))


def test_turned_scaled_and_moved_embeddings_relate_alike() -> None:
    t, there = draw(3, 6, 4), torch.ones(3, 6)
    turn = torch.linalg.qr(draw(4, 4))[0]
    assert float(relation_loss(2.5 * t @ turn + draw(4), t, there)) < 1e-9
    assert float(relation_loss(draw(3, 6, 4), t, there)) > 0.1


def test_sets_of_two_give_nothing_and_equal_vectors_no_nan() -> None:
    s, t = draw(2, 5, 3).requires_grad_(), draw(2, 5, 3)
    two = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 1, 1]])
    assert float(relation_loss(s, t, two).detach()) < 1e-12
    assert float(relation_loss(s, t, torch.ones(2, 5)).detach()) > 0.01
    one = torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert float(relation_loss(s, t, one).detach()) == 0
    same = torch.zeros(2, 5, 3, requires_grad=True)
    loss = relation_loss(same, same.detach(), torch.ones(2, 5))
    assert float(loss.detach()) == 0
    assert bool(torch.autograd.grad(loss, same)[0].isfinite().all())


def test_only_as_many_are_related_as_the_largest_set_has(monkeypatch) -> None:
    seen, real = [], l2d.relations

    def watched(e: Tensor, there: Tensor) -> Tensor:
        seen.append(tuple(e.shape))
        return real(e, there)

    monkeypatch.setattr(l2d, "relations", watched)
    s, t, there = draw(2, 50, 3), draw(2, 50, 4), torch.zeros(2, 50)
    there[0, [3, 20, 49]] = there[1, [0, 7]] = 1
    own = [3, 20, 49]
    torch.testing.assert_close(relation_loss(s, t, there), by_hand(s[0, own], t[0, own]))
    assert seen == [(2, 3, 3), (2, 3, 4)]


# --- the head ------------------------------------------------------------------------------------


def test_each_label_has_an_embedding_and_a_logit_of_its_own() -> None:
    torch.manual_seed(0)
    head = Decoder(5, 3, 8, 16, 2, G).eval()
    x = draw(4, 5, 2, 3)
    out = head(x)
    h = out["embedding"]
    assert h.shape == (4, 3, 8)
    for b in range(4):
        places = F.relu(x[b].flatten(1).T @ head.embed.weight.T + head.embed.bias)
        for c in range(3):
            q = head.norms[0](2 * head.queries[c])  # a query stands where others look at each other
            found = head.attention(q[None], places, places)[0][0]
            mid = head.norms[1](q + found)
            last = head.norms[2](mid + head.outer(head.inner(mid).relu()))
            torch.testing.assert_close(h[b, c], last, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                out["logits"][b, c], last @ head.weight[c, :, 0], atol=1e-5, rtol=1e-4
            )
    tokens = x.flatten(2).transpose(1, 2)
    torch.testing.assert_close(head(tokens)["logits"], out["logits"])
    assert "queries" not in dict(head.named_parameters())
    with pytest.raises(UsageError, match="which is no map"):
        head(draw(4, 5))


def test_many_labels_share_queries() -> None:
    torch.manual_seed(0)
    head = Decoder(3, 230, 4, 4, 1, G).eval()
    assert head.queries.shape == (100, 4)
    out = head(draw(2, 3, 2, 2))
    h = out["embedding"]
    assert h.shape == (2, 230, 4)
    torch.testing.assert_close(h[:, 0], h[:, 2])  # three labels a query
    assert not torch.allclose(h[:, 2], h[:, 3])
    assert out["logits"].shape == (2, 230)
    torch.testing.assert_close(out["logits"][0, 229], h[0, 229] @ head.weight[76, :, 1])


# --- scores --------------------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn() -> None:
    z, y = draw(80, 4).mul(2).round() / 2, (torch.rand(80, 4, generator=G) < 0.3).long()
    assert len(z[:, 0].unique()) < 40  # there are ties
    each = [average_precision_score(y[:, c], z[:, c]) for c in range(4)]
    assert mean_average_precision(z, y) == pytest.approx(sum(each) / 4)
    empty = torch.cat((y, torch.zeros(80, 1).long()), 1)
    more = torch.cat((z, draw(80, 1)), 1)
    assert mean_average_precision(more, empty) == pytest.approx(sum(each) / 4)
    said = (z > 0).long()
    found = f1_scores(z, y)
    assert found["OF1"] == pytest.approx(f1_score(y, said, average="micro"))
    assert found["CF1"] == pytest.approx(f1_score(y, said, average="macro"))


def test_class_numbers_are_one_label_each() -> None:
    assert one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(torch.tensor([[1, 1, 0]]), 3).tolist() == [[1, 1, 0]]


# --- runs ----------------------------------------------------------------------------------------


class Net(nn.Module):
    """A small network with a map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def pictures(n: int) -> tuple[Tensor, Tensor]:
    """Each label lights up a quarter of the picture."""
    y = (torch.rand(n, 4, generator=G) < 0.5).long()
    x = 0.4 * draw(n, 1, 8, 8)
    x[:, 0, :4, :4] += y[:, 0, None, None]
    x[:, 0, :4, 4:] += y[:, 1, None, None]
    x[:, 0, 4:, :4] += y[:, 2, None, None]
    x[:, 0, 4:, 4:] -= y[:, 3, None, None]
    return x, y


def task(**kw: Any) -> Task:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "teacher": Net(12),
        "student": lambda: Net(6),
        "train": pictures(96),
        "test": pictures(64),
        "score": Score("mAP", True, mean_average_precision),
        "budget": Budget(epochs=10, batch=16, optimiser=Optimiser("adam", lr=0.01)),
        "taps": {"feature": ("body", "body")},
        "classes": 4,
    }
    return Task(**{**given, **kw})


SMALL = {"dim": 16, "inner": 16, "attend": 2}


def run(given: Task, **fields: Any) -> Any:
    return limbeck.run("l2d", given, seed=3, device="cpu", **{**SMALL, **fields})


def test_a_head_is_put_on_both_sides_and_several_labels_are_learnt() -> None:
    given = task()
    before = {n: v.clone() for n, v in given.teacher.state_dict().items()}
    result = run(given)
    assert [s["stage"] for s in result.facts["stages"]] == ["head", "student"]
    last = [row for row in result.log if "terms" in row][-1]["terms"]
    assert set(last) == {"label", "mld", "cd", "id"}
    assert isinstance(result.model, Headed)
    x, y = given.test
    z = result.model.eval()(x)
    assert z.shape == (64, 4)
    told = result.facts["report"]
    assert told["mAP"] == pytest.approx(mean_average_precision(z, y))
    assert told["mAP"] == pytest.approx(result.facts["score"])
    assert told["mAP"] > float(y.double().mean()) + 0.15
    assert all(torch.equal(v, before[n]) for n, v in given.teacher.state_dict().items())


def test_without_teaching_it_is_the_headed_student_on_labels() -> None:
    result = run(task(budget=Budget(steps=2, batch=16)), mld=0.0, cd=0.0, id=0.0)
    assert [s["stage"] for s in result.facts["stages"]] == ["student"]
    assert set(result.log[-1]["terms"]) == {"label"}


class Labels(nn.Module):
    """A network that shows embeddings of labels itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body, self.dim = nn.Linear(64, 4 * dim), dim
        self.own = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x.flatten(1)).view(len(x), 4, self.dim)
        return {"logits": self.own(h)[..., 0], "embedding": h}


def test_heads_of_ones_own_are_taken_as_they_are() -> None:
    given = task(teacher=Labels(7), student=lambda: Labels(3), taps={}, budget=Budget(steps=3))
    result = run(given, heads="given")
    assert [s["stage"] for s in result.facts["stages"]] == ["student"]
    assert isinstance(result.model, Labels)
    flat = task(taps={"embedding": ("head:in", "head:in")}, budget=Budget(steps=1, batch=16))
    with pytest.raises(UsageError, match=r"one for each label, \(B, C, D\)"):
        run(flat, heads="given")


def test_what_cannot_work_is_said() -> None:
    with pytest.raises(UsageError, match="multiple of attend=8"):
        L2D(dim=20)
    with pytest.raises(Missing, match="no tap 'feature' names it"):
        run(task(taps={}))
    box = BlackBox(lambda x: torch.full((len(x), 4), 0.25), "probabilities")
    with pytest.raises(UsageError, match="which must be a module for that"):
        run(task(teacher=box))
