"""Tasks with one planted fault each: it is found, and nothing else is blamed."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.task import Budget, Optimiser, Task
from limbeck.doctor import Diagnosis, diagnose

pytestmark = pytest.mark.xdist_group("doctor")

CLASSES, WIDTH = 4, 8


def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Raw numbers around 10, of four classes with two modes each."""
    centres = torch.randn(CLASSES, 2, WIDTH, generator=torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    mode = torch.randint(2, (n,), generator=g)
    return 10 + 3 * (1.5 * centres[y, mode] + torch.randn(n, WIDTH, generator=g)), y


def scaled(x: Tensor) -> Tensor:
    return (x - 10) / 3


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, CLASSES))


def learnt(model: nn.Module, n: int, steps: int = 150) -> nn.Module:
    """A model trained on scaled inputs by a loop of its own."""
    x, y = draw(n, 1)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(steps):
        rows = torch.arange(64 * step, 64 * step + 64) % n
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(scaled(x[rows])), y[rows]).backward()
        optimiser.step()
    return model.eval()


@cache
def teacher() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return learnt(net(64), 2000)


def task(optimiser: Optimiser = Optimiser("sgd", lr=0.1, momentum=0.9), n: int = 400) -> Task:  # noqa: B008
    return Task(
        teacher(),
        lambda: net(8),
        draw(n, 2),
        valid=draw(400, 3),
        budget=Budget(steps=300, batch=32, optimiser=optimiser),
        readers={"teacher": scaled, "student": scaled},
        taps={"mid": ("1", "1")},
        classes=CLASSES,
    )


def blamed(found: Diagnosis) -> set[str]:
    return {f.name for f in found.findings if f.state in ("bad", "watch")}


def only(found: Diagnosis, name: str, state: str = "bad") -> None:
    assert blamed(found) == {name}, [f for f in found.findings if f.state in ("bad", "watch")]
    assert found[name].state == state, found[name]
    assert not found.healthy
    assert found.findings[0].name == name
    assert found[name].advice
    assert name in found.verdict


@pytest.mark.parametrize("method", ["kd", "fitnets", "crd(negatives=64, dim=16)"])
def test_a_healthy_task_is_healthy(method: str) -> None:
    taps = {"mid": ("1", "1"), "embedding": ("2:in", "2:in")}
    found = diagnose(replace(task(), taps=taps), method)
    assert found.healthy, found
    assert not blamed(found)
    assert all(f.state == "good" for f in found.findings), found


def test_neither_task_nor_teacher_is_changed() -> None:
    mine = task()
    before = {k: v.clone() for k, v in teacher().state_dict().items()}
    state = torch.get_rng_state()
    first = diagnose(mine)
    assert first == diagnose(mine)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in teacher().state_dict().items())
    assert not teacher().training
    assert not any(m._forward_hooks for m in teacher().modules())


def test_a_teacher_worse_than_the_student() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weak = learnt(nn.Sequential(nn.Linear(WIDTH, 2), nn.Linear(2, CLASSES)), 2000)
    only(diagnose(replace(task(), teacher=weak, taps={})), "teacher")


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [1, 0, 2, 3]])
def test_a_teacher_with_its_classes_in_another_order(order: list[int]) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[:, order]

    found = diagnose(replace(task(), teacher=Other(), taps={}))
    only(found, "classes")
    # output i of the teacher is logit order[i] of the one that has them right
    told = ", ".join(f"{i} -> {k}" for i, k in enumerate(order) if i != k)
    assert f"({told})" in found["classes"].says
    assert found["teacher"].state == "good"


def test_a_teacher_of_other_classes() -> None:
    with torch.random.fork_rng():
        other = nn.Linear(WIDTH, 7)
    found = diagnose(replace(task(), teacher=other, taps={}))
    only(found, "classes")
    assert "answers for 7 classes, and the task has 4" in found["classes"].says


def test_a_teacher_fed_with_inputs_that_are_not_scaled() -> None:
    found = diagnose(replace(task(), readers={"student": scaled}))
    only(found, "inputs")
    assert "standardised" in found["inputs"].says


def test_a_teacher_without_its_weights_is_at_chance() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        blank = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        nn.init.zeros_(blank[2].weight)
    found = diagnose(replace(task(), teacher=blank, taps={}))
    assert found["inputs"].state == "bad"
    assert "at chance" in found["inputs"].says


def test_a_teacher_that_knows_its_training_samples_only() -> None:
    """Right on what it was trained on, at chance on all else: it may label nothing."""
    given = task()
    x, y = scaled(draw(400, 2)[0]), draw(400, 2)[1]

    class ByHeart(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            near = torch.cdist(z, x, compute_mode="donot_use_mm_for_euclid_dist")
            known = near.amin(1) < 1e-5
            noise = (z.abs().sum(1) * 1000).long() % CLASSES  # blind to what z is of
            return 9 * nn.functional.one_hot(torch.where(known, y[near.argmin(1)], noise), CLASSES)

    found = diagnose(replace(given, teacher=ByHeart(), taps={}))
    assert found["teacher"].state == "bad"
    assert found["teacher"].says.endswith(": it is at chance")
    assert "can label" not in found["data"].advice


def test_a_teacher_that_was_stopped_too_early() -> None:
    """It is right on less than half of what it was shown."""
    whole = task()
    teacher = whole.teacher

    class Half(nn.Module):
        """The teacher's answers for 9 of 20 samples, and the next class for the others."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = teacher(x)
            wrong = (x.sum(-1, keepdim=True) * 1000).floor().long() % 20 > 8
            return torch.where(wrong, z.roll(1, -1), z)

    found = diagnose(replace(whole, teacher=Half(), taps={}))
    assert found["teacher"].state == "bad"
    assert "of the training samples only" in found["teacher"].says


@pytest.mark.parametrize("optimiser", [Optimiser("sgd", lr=0.1, momentum=0.9), Optimiser(lr=1e-2)])
def test_a_weight_a_thousand_times_too_large(optimiser: Optimiser) -> None:
    found = diagnose(task(optimiser), "kd(kd=900)", command=["limbeck", "run", "kd", "--kd", "900"])
    only(found, "balance")
    if optimiser.name == "adamw":
        assert found["balance"].command == "limbeck run kd --kd 0.9"


@pytest.mark.parametrize("tau", [100.0, 0.05])
def test_a_temperature_far_off(tau: float) -> None:
    command = ["limbeck", "run", "kd", "--task", "t.py:f", "--tau", str(tau), "--out", "d"]
    found = diagnose(task(), f"kd(tau={tau})", command=command)
    only(found, "temperature")
    proposed = found["temperature"].command
    assert proposed is not None
    assert proposed.startswith("limbeck run kd --task t.py:f --tau ")
    assert 1 <= float(proposed.split()[-1]) <= 20


def test_a_tap_that_is_not_there() -> None:
    found = diagnose(replace(task(), taps={"mid": ("1", "9")}), "fitnets")
    only(found, "taps")
    assert "no module '9'" in found["taps"].says


def test_taps_of_two_kinds() -> None:
    class Map(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, None, None].expand(-1, -1, 2, 2)

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    def student() -> nn.Module:
        plain = net(8)
        return nn.Sequential(plain[0], plain[1], Map(), Mean(), plain[2])

    found = diagnose(replace(task(), student=student, taps={"mid": ("1", "2")}), "fitnets")
    only(found, "taps", "watch")
    assert "mid is 64 in the teacher and 8x2x2 in the student" in found["taps"].says


def test_a_student_that_is_too_small() -> None:
    found = diagnose(replace(task(), student=lambda: net(1)))
    only(found, "student")


def test_too_few_samples() -> None:
    found = diagnose(task(n=12))
    only(found, "data", "watch")
    assert "12 training samples (3 a class)" in found["data"].says


@pytest.mark.parametrize("optimiser", [Optimiser("sgd", lr=0.1, momentum=0.9), Optimiser(lr=1e-2)])
@pytest.mark.parametrize(("factor", "word"), [(100, "too high"), (1e-3, "too low")])
def test_a_rate_far_off(optimiser: Optimiser, factor: float, word: str) -> None:
    off = replace(optimiser, lr=factor * optimiser.lr)
    found = diagnose(task(off), command=["limbeck", "run", "kd", "--lr", "9"])
    only(found, "rate")
    assert word in found["rate"].advice
    proposed = float(str(found["rate"].command).split()[-1])
    assert optimiser.lr / 11 < proposed < optimiser.lr * 11
