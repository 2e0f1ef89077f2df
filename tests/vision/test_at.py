"""at: maps by loops, both forms and their gradient in closed form, input gradients by hand."""

import math
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.bench.worlds._models import CNN, ViT
from limbeck.core.data import Batch
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.views import Look
from limbeck.errors import UsageError
from limbeck.vision.at import AT, apart, attention, leaf, slope

pytestmark = pytest.mark.xdist_group("at")

G = torch.Generator().manual_seed(3)
STUDENT = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]]])  # two channels, two places
TEACHER = torch.ones(1, 1, 1, 2)
FORMS: tuple[Literal["square", "norm"], ...] = ("square", "norm")


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


def looped(a: Tensor, p: float, pool: str) -> np.ndarray:
    """Maps (B, places) of length 1."""
    b, c, h, w = a.shape
    out = np.zeros((b, h * w))
    for n in range(b):
        for i in range(h):
            for j in range(w):
                each = [abs(float(a[n, k, i, j])) ** p for k in range(c)]
                out[n, i * w + j] = sum(each) if pool == "sum" else max(each)
        out[n] /= math.sqrt(sum(v * v for v in out[n]))
    return out


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["sum", "max"])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0])
def test_maps_and_distances_are_those_of_loops(p: float, pool: Literal["sum", "max"]) -> None:
    s, t = draw(3, 4, 2, 3), draw(3, 5, 2, 3)
    a, b = attention(s, p, pool), attention(t, p, pool)
    want_a, want_b = looped(s, p, pool), looped(t, p, pool)
    np.testing.assert_allclose(a.numpy(), want_a, rtol=1e-5)
    square = ((want_a - want_b) ** 2).sum(1).mean() / 6
    assert float(apart(a, b)) == pytest.approx(square, rel=1e-5)
    norm = np.sqrt(((want_a - want_b) ** 2).sum(1)).mean() / 2
    assert float(apart(a, b, "norm")) == pytest.approx(norm, rel=1e-5)
    cos = torch.tensor((want_a * want_b).sum(1))
    assert float(apart(a, b)) == pytest.approx(float((2 - 2 * cos).mean()) / 6, rel=1e-4)
    assert 0 < float(apart(a, b)) <= 2 / 6
    assert 0 < float(apart(a, b, "norm")) <= 1 / math.sqrt(2)


@pytest.mark.parametrize(
    ("p", "pool", "square", "norm"),
    [
        (2.0, "sum", 0.051317, 0.160182),
        (1.0, "sum", 0.0, 0.0),
        (2.0, "max", 0.142507, math.sqrt(2 * 0.142507) / 2),
    ],
)
def test_two_places_by_hand(p: float, pool: Any, square: float, norm: float) -> None:
    a, b = attention(STUDENT, p, pool), attention(TEACHER, p, pool)
    assert float(apart(a, b)) == pytest.approx(square, abs=1e-6)
    assert float(apart(a, b, "norm")) == pytest.approx(norm, abs=1e-6)


def test_gradient_in_closed_form() -> None:
    q = torch.tensor([[2.0, 4.0], [1.0, 3.0]], requires_grad=True)
    c = F.normalize(torch.tensor([[1.0, 1.0], [5.0, 1.0]]))
    (found,) = torch.autograd.grad(apart(q / q.norm(dim=1, keepdim=True), c) * 2, q)  # a sum
    with torch.no_grad():
        length = q.norm(dim=1, keepdim=True)
        cos = (q / length * c).sum(1, keepdim=True)
        want = 2 / (2 * length) * (cos * q / length - c)
    torch.testing.assert_close(found, want)
    assert found[0].tolist() == pytest.approx([-0.063246, 0.031623], abs=1e-6)
    assert (found * q).sum(1).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_neither_scale_nor_sign_nor_order_nor_number_of_channels_counts() -> None:
    a = draw(2, 4, 3, 3)
    for same in (3 * a, -a, a[:, [2, 0, 3, 1]], a.repeat(1, 2, 1, 1)):
        for pool in ("sum", "max"):
            torch.testing.assert_close(attention(same, 2.0, pool), attention(a, 2.0, pool))
    one = attention(draw(4, 7, 1, 1))
    assert torch.equal(one, torch.ones(4, 1))
    positive = draw(2, 1, 2, 2).abs()
    torch.testing.assert_close(attention(positive, 1.0), F.normalize(positive.flatten(1)))


def test_equal_maps_and_dead_ones_have_finite_gradients() -> None:
    for form in FORMS:
        for start in (torch.zeros(2, 3, 2, 2), TEACHER.expand(2, 3, 1, 2)):
            a = start.clone().requires_grad_()
            target = attention(start)
            (grad,) = torch.autograd.grad(apart(attention(a), target, form), a)
            assert torch.equal(grad, torch.zeros_like(grad))


# --- gradients in the inputs ---------------------------------------------------------------------


def side(model: nn.Module, x: Tensor) -> Any:
    return Look(model, "student").side_of(Batch(x=x))


def linear(*rows: list[float]) -> nn.Linear:
    made = nn.Linear(len(rows[0]), len(rows), bias=False)
    made.weight.data = torch.tensor(rows)
    return made


def test_slopes_of_linear_models() -> None:
    w, x, y = draw(3, 4), draw(5, 4), torch.tensor([0, 2, 1, 1, 0])
    found = slope(side(linear(*w.tolist()), x.requires_grad_()), y, False)
    p = (x.detach() @ w.T).softmax(1)
    torch.testing.assert_close(found, (p - F.one_hot(y, 3)) @ w)


def term(method: AT, s: nn.Module, t: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    batch = Batch(x=x, y=y)
    mine, theirs = method.prepare(batch, SimpleNamespace)
    looks = (Look(s, "student").side_of(mine), Look(t, "teacher").side_of(theirs))
    return dict(method.terms(None, *looks, mine, SimpleNamespace(epoch=0, epochs=2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_input_gradients_by_hand(form: Literal["square", "norm"]) -> None:
    s, t = linear([1.0], [-1.0]), linear([2.0], [-2.0])
    x, y = torch.zeros(2, 1), torch.tensor([0, 0])
    method = AT(label=0, at=0, gradient=3.0, form=form)
    for other, want in ((t, 0.5), (s, 0.0)):
        assert float(term(method, s, other, x, y)["gradient"].detach()) == pytest.approx(3 * want)
    # J_s = w_0 (p - 1) + w_1 (1 - p) at x = 0: (w_1 - w_0) / 2, so of 1/2 (J_s - J_t)^2 the
    # derivative in w_0 is (J_s - J_t) * (-1/2) = -1/2, and half of that of |J_s - J_t| / 2
    (grad,) = torch.autograd.grad(term(method, s, t, x, y)["gradient"], s.weight)
    want = 1.5 if form == "square" else 0.75
    assert grad.flatten().tolist() == pytest.approx([-want, want])


def test_second_order_gradient_is_that_of_differences() -> None:
    s, t = (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double() for _ in "st")
    x, y = draw(5, 4).double(), torch.tensor([0, 1, 2, 1, 0])
    method = AT(label=0, at=0, gradient=1.0)
    weight = s[0].weight
    (found,) = torch.autograd.grad(term(method, s, t, x, y)["gradient"], weight)

    def at(move: float) -> float:
        with torch.no_grad():
            weight[1, 2] += move
        value = float(term(method, s, t, x, y)["gradient"].detach())
        with torch.no_grad():
            weight[1, 2] -= move
        return value

    assert float(found[1, 2]) == pytest.approx((at(1e-5) - at(-1e-5)) / 2e-5, rel=1e-6)
    assert all(p.grad is None for p in t.parameters())


class Middle(nn.Module):
    """Logits from the columns' mean: blind for left and right, unless `lean` is not 0."""

    def __init__(self, lean: float) -> None:
        super().__init__()
        self.lean, self.head = lean, nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        weights = 1 + self.lean * torch.arange(x.shape[3])
        return self.head((x[:, 0] * weights).mean(2))  # type: ignore[no-any-return]


def test_symmetry_is_of_what_tells_left_from_right() -> None:
    x, y = draw(6, 1, 3, 5), torch.arange(6) % 4
    method = AT(label=0, at=0, symmetry=2.0)
    blind, leaning = Middle(0.0), Middle(0.5)
    assert float(term(method, blind, blind, x, y)["symmetry"].detach()) == pytest.approx(
        0, abs=1e-9
    )
    found = float(term(method, leaning, leaning, x, y)["symmetry"].detach())
    with torch.enable_grad():
        a, b = x.clone().requires_grad_(), x.flip(3).clone().requires_grad_()
        (j,) = torch.autograd.grad(F.cross_entropy(leaning(a), y, reduction="sum"), a)
        (k,) = torch.autograd.grad(F.cross_entropy(leaning(b), y, reduction="sum"), b)
    want = (j - k.flip(3)).square().sum((1, 2, 3)).mean() / 2
    assert found == pytest.approx(2 * float(want), rel=1e-5)
    assert found > 0


def test_what_has_no_gradient_in_its_inputs_is_refused() -> None:
    with pytest.raises(UsageError, match="gradients are in the inputs, but these are dict"):
        leaf(Batch(x={"ids": torch.ones(2, 3)}, index=torch.arange(2)))
    with pytest.raises(UsageError, match=r"\(2, 3\); give pictures"):
        leaf(Batch(x=torch.ones(2, 3)), flip=True)
    taken = leaf(Batch(x=torch.full((2, 1, 2, 2), 51, dtype=torch.uint8))).x
    assert taken.requires_grad
    assert float(taken.detach().mean()) == pytest.approx(0.2)


# --- the method ----------------------------------------------------------------------------------


def shown(blocks: list[Tensor], logits: Tensor) -> Any:
    return SimpleNamespace(blocks=blocks, logits=logits)


def test_terms_are_added_over_stages_and_weighted() -> None:
    s = shown([draw(4, 3, 4, 4), draw(4, 5, 2, 2), draw(4, 7, 1, 1)], draw(4, 3))
    t = shown([draw(4, 2, 2, 2), draw(4, 5, 4, 4), draw(4, 9, 1, 1)], draw(4, 3))
    batch, clock = Batch(x=torch.zeros(4, 1), y=torch.tensor([0, 1, 2, 0])), SimpleNamespace()
    clock.epoch, clock.epochs = 0, 11
    found = AT(kd=2.0).terms(None, s, t, batch, clock)  # type: ignore[arg-type]
    assert set(found) == {"label", "at", "kd"}
    want = 0.0
    for a, b in zip(s.blocks[:2], t.blocks[:2], strict=True):
        a, b = (F.avg_pool2d(m, 2) if m.shape[2] == 4 else m for m in (a, b))
        want += float(((looped(a, 2, "sum") - looped(b, 2, "sum")) ** 2).mean())
    assert float(found["at"]) == pytest.approx(1000 * want, rel=1e-4)
    assert float(found["label"]) == pytest.approx(float(F.cross_entropy(s.logits, batch.y)))
    p, q = (t.logits / 4).log_softmax(1), (s.logits / 4).log_softmax(1)
    soft = 16 * (p.exp() * (p - q)).sum(1).mean()
    assert float(found["kd"]) == pytest.approx(2 * float(soft), rel=1e-5)
    for epoch, left in ((0, 1.0), (5, 0.6), (10, 0.2)):
        clock.epoch = epoch
        faded = AT(fade=0.8).terms(None, s, t, batch, clock)["at"]  # type: ignore[arg-type]
        assert float(faded) == pytest.approx(1000 * left * want, rel=1e-4)


def test_tokens_are_compared_with_maps() -> None:
    tokens, maps = draw(2, 17, 6), draw(2, 3, 8, 8)
    s, t = shown([tokens], draw(2, 3)), shown([maps], draw(2, 3))
    clock: Any = SimpleNamespace(epoch=0, epochs=1)
    found = AT(label=0, at=1.0).terms(None, s, t, Batch(x=torch.zeros(2, 1)), clock)["at"]
    grid = tokens[:, 1:].mT.reshape(2, 6, 4, 4)
    want = ((looped(grid, 2, "sum") - looped(F.avg_pool2d(maps, 2), 2, "sum")) ** 2).mean()
    assert float(found) == pytest.approx(float(want), rel=1e-4)


X, Y = torch.randn(48, 1, 8, 8, generator=G), torch.arange(48) % 4
MODELS = {"cnn": CNN((1, 8, 8), 4, (4, 8, 8)), "vit": ViT((1, 8, 8), 4, 16)}
TEACHERS = {"cnn": CNN((1, 8, 8), 4, (6, 12, 12)), "vit": ViT((1, 8, 8), 4, 24, 4)}


def trained(student: str, teacher: str, **fields: Any) -> list[dict[str, float]]:
    torch.manual_seed(2)
    task = Task(
        teacher=TEACHERS[teacher],
        student=MODELS[student],
        train=(X, Y),
        test=(X, Y),
        taps={"blocks": (TEACHERS[teacher].taps["blocks"], MODELS[student].taps["blocks"])},
        budget=Budget(steps=25, batch=24, optimiser=Optimiser(lr=0.02)),
    )
    return [row["terms"] for row in limbeck.run(AT(**fields), task, seed=1, device="cpu").log]


@pytest.mark.parametrize("pair", [("cnn", "cnn"), ("vit", "cnn"), ("cnn", "vit"), ("vit", "vit")])
def test_a_students_maps_come_nearer(pair: tuple[str, str]) -> None:
    rows = trained(*pair, label=0)
    assert rows[-1]["at"] < 0.7 * rows[0]["at"]


@pytest.mark.parametrize("name", ["gradient", "symmetry"])
def test_a_students_input_gradients_come_nearer(name: str) -> None:
    rows = trained("vit", "cnn", label=0, at=0, **{name: 1.0})
    assert set(rows[0]) == {name}
    assert rows[-1][name] < 0.7 * rows[0][name]
