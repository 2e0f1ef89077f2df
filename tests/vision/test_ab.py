"""ab: the hinge by loops and by hand, what each stage trains, and boundaries that come nearer."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.bench.worlds._models import CNN, ViT
from limbeck.core.engine import fit
from limbeck.core.objectives import Labels
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision._kit.prerelu import before_relu
from limbeck.vision.ab import AB, Stage, boundary_loss, centred_loss

pytestmark = pytest.mark.xdist_group("ab")

G = torch.Generator().manual_seed(3)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


# --- the hinge -----------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.3, 1.0, 2.0])
def test_loss_is_that_of_loops(margin: float) -> None:
    s, t = draw(3, 4, 2, 2), draw(3, 4, 2, 2)
    t[0, 0] = 0
    for n in range(3):
        want = 0.0
        for a, b in zip(s[n].flatten().tolist(), t[n].flatten().tolist(), strict=True):
            want += max(margin - a, 0) ** 2 if b > 0 else max(margin + a, 0) ** 2
        assert float(boundary_loss(s, t, margin)[n]) == pytest.approx(want, rel=1e-5)


def test_four_neurons_by_hand() -> None:
    t, s = torch.tensor([[2.0, -1.0, 0.0, 3.0]]), torch.tensor([[0.5, 0.5, -2.0, 1.5]])
    assert boundary_loss(s, t).tolist() == [0.25 + 2.25]
    assert 0.003 * float(boundary_loss(s, t)) == pytest.approx(0.0075)
    assert ((t > 0) != (s > 0)).sum() == 1


def test_gradient() -> None:
    s, t = draw(5, 6).requires_grad_(), draw(5, 6)
    (found,) = torch.autograd.grad(boundary_loss(s, t, 0.8).mean(), s)
    with torch.no_grad():
        want = torch.where(t > 0, -2 * (0.8 - s).relu(), 2 * (0.8 + s).relu()) / 5
    torch.testing.assert_close(found, want)
    assert (found == 0).any()


def test_only_signs_of_the_teacher_count() -> None:
    s, t = draw(4, 9), draw(4, 9)
    plain = boundary_loss(s, t)
    for same in (t * draw(4, 9).abs(), t.relu(), t.sign()):
        torch.testing.assert_close(boundary_loss(s, same), plain)
    torch.testing.assert_close(boundary_loss(-s, -t), plain)
    far = t.sign() * (1 + s.abs())
    assert boundary_loss(far, t).tolist() == [0.0] * 4
    assert boundary_loss(torch.zeros(4, 9), t, 0.5).tolist() == pytest.approx([9 * 0.25] * 4)
    apart = ((s > 0) != (t > 0)).sum(1)
    assert (plain >= apart).all()
    assert (apart > 0).all()


def test_centred_logits() -> None:
    u, z = draw(4, 5), draw(4, 5)
    want = sum(
        (float(u[i, c] - u[i].mean()) - float(z[i, c] - z[i].mean())) ** 2
        for i in range(4)
        for c in range(5)
    )
    assert float(centred_loss(u, z)) == pytest.approx(want / 20, rel=1e-5)
    shifted = centred_loss(u + draw(4, 1), z + draw(4, 1))
    torch.testing.assert_close(shifted, centred_loss(u, z))


# --- the stages ----------------------------------------------------------------------------------

X, Y = torch.randn(48, 1, 8, 8, generator=G), torch.arange(48) % 4


def task(teacher: nn.Module, student: Any, steps: int = 24, **more: Any) -> Task:
    return Task(
        teacher=teacher,
        student=student,
        train=(X, Y),
        test=(X, Y),
        taps={
            "blocks": (teacher.taps["blocks"], student.taps["blocks"]),
            "embedding": ("head:in", "head:in"),
        },
        budget=Budget(**{"steps": steps, "batch": 24, "optimiser": Optimiser(lr=0.02), **more}),
    )


def cnn(*widths: int, classes: int = 4) -> CNN:
    torch.manual_seed(sum(widths))
    return CNN((1, 8, 8), classes, widths)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def first(method: AB, given: Task) -> Any:
    """The fit of the first stage."""
    with Run(given, seed=1, device="cpu") as run:
        student = run.student(given)
        moved, _ = before_relu(given, student)
        parts = given.the_teacher(), given.batches()
        return fit(Stage("init", method), student, *parts, name="init", task=moved)


def agreement(teacher: nn.Module, fitted: Any) -> float:
    """The share of neurons of all stages that are on or off in both, in eval mode."""
    from limbeck.core.views import Look

    model, same, of = fitted.student.eval(), 0, 0
    paths = [f"body.{k}.2:in" for k in range(2)]
    t = Look(teacher.eval(), "teacher", {"blocks": paths}).side_of(X).blocks
    s = Look(model, "student", {"blocks": paths}).side_of(X).blocks
    for a, b, made in zip(s, t, fitted.parts.eval()["connectors"], strict=True):
        same += int(((made(a) > 0) == (b > 0)).sum())
        of += b.numel()
    return same / of


def test_the_first_stage_moves_boundaries_and_no_head() -> None:
    teacher, student = cnn(6, 8), cnn(4, 8)
    given = task(teacher, student, 60)
    fitted = first(AB(), given)
    one, two = fitted.parts["connectors"]
    assert (one[0].in_channels, one[0].out_channels) == (4, 6)
    assert isinstance(two, nn.Identity)
    for name in ("weight", "bias"):
        assert torch.equal(getattr(fitted.student.head, name), getattr(student.head, name))
    assert not torch.equal(fitted.student.body[0][0].weight, student.body[0][0].weight)
    rows = [row["terms"]["ab"] for row in fitted.log]
    assert rows[-1] < 0.7 * rows[0]
    assert set(fitted.log[0]["terms"]) == {"ab"}
    assert agreement(teacher, fitted) > 0.75


def test_terms_of_the_first_stage() -> None:
    teacher, student = cnn(6, 8), cnn(4, 8)
    given = task(teacher, student, 1, batch=48)
    row = first(AB(margin=0.7), given).log[0]["terms"]["ab"]
    # the same step by hand: the student in train mode, the connector's weights from the run
    kept: list[Tensor] = []

    def keep(fitter: Any) -> None:
        kept.extend(p.detach().clone() for p in fitter.parts.parameters())

    with Run(given, seed=1, device="cpu", on_fit=keep) as run:
        mine = run.student(given).train()
        moved, _ = before_relu(given, mine)
        parts = given.the_teacher(), given.batches()
        fit(Stage("init", AB(margin=0.7)), run.student(given), *parts, name="init", task=moved)
    teacher.eval()
    with torch.no_grad():
        s1 = mine.body[0][1](mine.body[0][0](X))
        s2 = mine.body[1][1](mine.body[1][0](F.max_pool2d(s1.relu(), 2)))
        t1 = teacher.body[0][1](teacher.body[0][0](X))
        t2 = teacher.body[1][1](teacher.body[1][0](F.max_pool2d(t1.relu(), 2)))
        r = F.batch_norm(F.conv2d(s1, kept[0]), None, None, kept[1], kept[2], training=True)
        want = boundary_loss(r, t1, 0.7).mean() / 2 + boundary_loss(s2, t2, 0.7).mean()
    assert row == pytest.approx(0.003 * float(want), rel=1e-4)


def test_without_the_first_stage_it_is_plain_training() -> None:
    given = task(cnn(6, 8), cnn(4, 8))
    plain = state(limbeck.run(Labels(), given, seed=2, device="cpu").model)
    same = state(limbeck.run("ab", given, seed=2, device="cpu", ab=0.0).model)
    assert all(torch.equal(v, same[k]) for k, v in plain.items())
    begun = state(limbeck.run("ab", given, seed=2, device="cpu").model)
    assert not all(torch.equal(v, begun[k]) for k, v in plain.items())


def test_stages_and_their_lengths() -> None:
    given = task(cnn(6, 8), cnn(4, 8), keep="best", evaluate=8, steps=24)
    given.valid = (X, Y)
    with Run(given, seed=1, device="cpu") as run:
        result = AB(share=0.5, kd=1.0).run(given)
        assert [(s["stage"], s["steps"]) for s in run.stages] == [("init", 12), ("train", 24)]
    terms = {row["stage"]: set(row["terms"]) for row in result.log if "terms" in row}
    assert terms == {"init": {"ab"}, "train": {"label", "kd"}}
    assert not any("valid" in row for row in result.log if row["stage"] == "init")


def test_transfer_to_other_classes_keeps_its_head() -> None:
    given = task(cnn(6, 8, classes=7), cnn(4, 8))
    heads: list[Tensor] = []

    def keep(fitter: Any) -> None:
        heads.append(fitter.parts["head"].weight.detach().clone())

    with Run(given, seed=1, device="cpu", on_fit=keep):
        result = AB(transfer=10.0).run(given)
    assert heads[0].shape == heads[1].shape == (7, 8)
    assert not torch.equal(heads[0], heads[1])  # the second stage goes on with what was learnt
    rows = [row["terms"]["transfer"] for row in result.log]
    assert rows[-1] < 0.7 * rows[0]
    assert set(result.model.state_dict()) == set(cnn(4, 8).state_dict())


def test_tokens_too() -> None:
    torch.manual_seed(3)
    for teacher, student in (
        (ViT((1, 8, 8), 4, 16, 2), cnn(4, 8)),
        (cnn(4, 8), ViT((1, 8, 8), 4, 16, 2)),
    ):
        rows = [row["terms"]["ab"] for row in first(AB(), task(teacher, student)).log]
        assert rows[-1] < 0.9 * rows[0]


def test_nothing_to_train_by_is_refused() -> None:
    with pytest.raises(UsageError, match="second stage has no term"):
        limbeck.run("ab", task(cnn(6, 8), cnn(4, 8)), device="cpu", label=0.0)
