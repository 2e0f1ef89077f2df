"""The world `multilabel`: what its pictures hold, its score, its teacher, and how labels count."""

import pytest
import torch

import limbeck
from limbeck.bench import worlds
from limbeck.bench.worlds import multilabel
from limbeck.bench.worlds.digits import _pictures
from limbeck.core.data import Table
from limbeck.core.evaluate import measure
from limbeck.core.objectives import Labels
from limbeck.core.teachers import Frozen
from limbeck.errors import Missing, UsageError

pytestmark = pytest.mark.xdist_group("multilabel")
G = torch.Generator().manual_seed(6)


def test_pictures_hold_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multilabel, "_GRAIN", 0.0)
    rows = torch.arange(300)
    x, y = multilabel.draw(rows, 200, "train", 0)
    ink, digit = _pictures()
    counts = y.sum(1)
    assert set(counts.tolist()) == {1, 2, 3, 4}
    assert set(y.unique().tolist()) == {0, 1}
    x = x * 0.25 + 0.1
    known = torch.nn.functional.normalize(ink[rows, 0].flatten(1), dim=1)
    for i in range(40):
        found = []
        for cell in (
            x[i, 0].unflatten(1, (2, 12)).unflatten(0, (2, 12)).transpose(1, 2).flatten(0, 1)
        ):
            if cell.abs().max() < 1e-6:
                continue
            # Of all places where it may stand, that in which a known digit fits exactly.
            places = cell.unfold(0, 8, 1).unfold(1, 8, 1).flatten(0, 1).flatten(1)
            fit = torch.nn.functional.normalize(places, dim=1) @ known.T
            assert fit.max() > 1 - 1e-5
            found.append(int(digit[rows][int(fit.argmax()) % len(rows)]))
        assert sorted(found) == y[i].nonzero()[:, 0].tolist()


def test_data_are_fixed_and_sets_differ() -> None:
    one, two = (worlds.make("multilabel(teacher='none')", seed=k, tiny=True) for k in (1, 2))
    other = worlds.make("multilabel(teacher='none', data_seed=1)", tiny=True)
    for name in ("train", "valid", "test"):
        pairs = zip(getattr(one, name), getattr(two, name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not torch.equal(getattr(one, name)[0], getattr(other, name)[0])
    x = one.train[0]
    assert x.shape == (192, 1, 24, 24)
    assert abs(float(x.mean())) < 0.3
    assert 0.7 < float(x.std()) < 1.3


def test_the_score_is_the_mean_of_average_precisions() -> None:
    # Ranked 3, 1, 2, 0: hits at ranks 1 and 3, so (1 + 2/3) / 2. The other label is ranked right.
    z = torch.tensor([[0.0, -1.0], [2.0, 3.0], [1.0, -2.0], [3.0, -3.0]])
    y = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert multilabel.mean_average_precision(z, y) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    z, y = torch.cat((z, z[:, :1]), 1), torch.cat((y, torch.zeros(4, 1)), 1)  # a label nobody has
    assert multilabel.mean_average_precision(z, y) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


def test_labels_of_several_are_summed_and_smoothed() -> None:
    from types import SimpleNamespace

    from limbeck.core.data import Batch

    z = torch.randn(3, 4, generator=G, dtype=torch.float64)
    y = (torch.rand(3, 4, generator=G) < 0.5).long()
    slow = 0.0
    for b in range(3):
        for c in range(4):
            p, t = float(z[b, c].sigmoid()), 0.9 * int(y[b, c]) + 0.05
            slow -= t * torch.tensor(p).log().item() + (1 - t) * torch.tensor(1 - p).log().item()
    side, batch = SimpleNamespace(logits=z), Batch(x=z, y=y)
    got = Labels(label=2.0, smoothing=0.1).terms(None, side, None, batch, None)["label"]
    assert float(got) == pytest.approx(2 * slow / 3, rel=1e-5)


def test_a_tiny_teacher_and_a_student_alone_learn() -> None:
    task = worlds.make("multilabel", tiny=True)
    table = Table(task.test)
    chance = float(task.test[1].double().mean())
    assert isinstance(task.teacher, Frozen)
    taught = measure(task.teacher.module, table, task.score)
    assert taught > chance + 0.1
    result = limbeck.run(Labels(), task)
    assert result.model is not None
    fresh = measure(task.new_student(0), table, task.score)
    assert measure(result.model, table, task.score) > fresh
    for paths in task.taps.values():
        for model, path in zip((task.teacher.module, result.model), paths, strict=True):
            for name in [path] if isinstance(path, str) else path:
                model.get_submodule(name.partition(":")[0])


@pytest.mark.slow
def test_a_student_alone_is_well_below_its_teacher() -> None:
    task = worlds.make("multilabel")
    table = Table(task.test)
    alone = limbeck.run(Labels(), task).model
    assert alone is not None
    assert isinstance(task.teacher, Frozen)
    assert measure(alone, table, task.score) > 0.35
    assert measure(alone, table, task.score) < measure(task.teacher.module, table, task.score) - 0.2


def test_the_doctor_counts_no_classes() -> None:
    from limbeck.doctor.probe import by_heart

    task = worlds.make("multilabel(teacher='none')", tiny=True)
    with pytest.raises(UsageError, match="a sample has several labels"):
        by_heart(task, 4, 0, "cpu")


def test_what_cannot_be_is_a_sentence() -> None:
    with pytest.raises(Missing, match="no model family is called 'ccn'; did you mean 'cnn'"):
        worlds.make("multilabel(student='ccn')", tiny=True)
    with pytest.raises(UsageError, match="n is 5; give a whole number from 64"):
        worlds.make("multilabel(n=5)", tiny=True)
