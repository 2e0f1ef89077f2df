"""The room `plain`: tasks of modules on tensors and tables."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.core import plain
from limbeck.core.caching import cache_teacher
from limbeck.core.data import Table
from limbeck.core.evaluate import measure
from limbeck.core.sources.sets import Standardise
from limbeck.core.task import Budget, Optimiser
from limbeck.core.teachers import Cached, Frozen, Nobody
from limbeck.core.untrained import Untrained
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("plain")

SHIFT = torch.tensor([0.0, 1000.0, -5.0, 7.0])
SCALE = torch.tensor([1.0, 300.0, 0.01, 0.0])  # the last column is constant


def blobs(n: int = 300) -> tuple[Tensor, Tensor]:
    """Three clouds in columns of very different scales."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    centres = torch.tensor([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    x = centres[y] + 0.3 * torch.randn(n, 4, generator=g)
    return x * SCALE + SHIFT, y


QUICK = Budget(steps=150, batch=32, optimiser=Optimiser(lr=0.02))


class Knows(nn.Module):
    """A trained teacher of the clouds: of raw columns, or of standardised ones."""

    def __init__(self, raw: bool, classes: int = 3) -> None:
        super().__init__()
        self.raw, self.classes = raw, classes

    def forward(self, x: Tensor) -> Tensor:
        if self.raw:
            x = (x - SHIFT) / SCALE.clamp(min=1e-9)
        return torch.cat([x[:, :3], x[:, :0].new_full((len(x), self.classes - 3), -9)], 1)


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.body = nn.LazyLinear(6)
        self.head = nn.Linear(6, classes)
    def forward(self, x):
        return self.head(self.body(x).relu())

def sized(classes=5):
    return nn.Linear(4, classes)

def five():
    return nn.Linear(4, 5)

def narrow():
    return nn.Linear(2, 3)
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return f"{tmp_path}/nets.py"


# -- data ------------------------------------------------------------------------------------------


def test_columns_are_standardised_by_train_alone() -> None:
    x, y = blobs()
    made = plain.task(None, student, {"train": (x[:100], y[:100]), "test": (x[100:], y[100:])})
    kept = made.train[0]
    assert len(kept) == 85  # fifteen of a hundred are held out as valid
    read = made.readers["student"](kept)
    assert read[:, :3].mean(0).abs().max() < 1e-3
    assert torch.allclose(read[:, :3].std(0, correction=0), torch.ones(3), atol=1e-3)
    assert read[:, 3].abs().max() == 0
    mean, std = kept.double().mean(0), kept.double().std(0, correction=0)
    told = made.about["inputs"]
    assert told["kind"] == "table"
    assert told["columns"] == ["0", "1", "2", "3"]
    assert told["mean"] == pytest.approx(mean.tolist())
    assert told["std"] == pytest.approx([*std.tolist()[:3], 1.0])
    assert repr(Standardise.of(x)) == "Standardise(4 columns)"


def test_the_split_is_said_and_counted() -> None:
    x, y = blobs()
    made = plain.task(None, student, (x, y))
    counts = {"train": 210, "valid": 45, "test": 45, "made": True}
    assert made.about["split"] == counts
    assert [len(made.set(n)[1]) for n in ("train", "valid", "test")] == [210, 45, 45]
    assert "210 train, 45 valid, 45 test" in made.notes[0]
    assert "no test set was given" in made.notes[0]
    rows = {tuple(r) for n in ("train", "valid", "test") for r in made.set(n)[0].tolist()}
    assert len(rows) == 300

    whole = {"train": (x[:200], y[:200]), "valid": (x[200:250], y[200:250])}
    made = plain.task(None, student, whole, test=(x[250:], y[250:]))
    assert made.notes == ()
    assert made.about["split"] == {"train": 200, "valid": 50, "test": 50, "made": False}
    made = plain.task(None, student, whole)
    assert "no test set was given" in made.notes[0]
    assert made.about["split"]["test"] == 30  # of each class of 67, 67, 66 ten
    assert torch.equal(made.valid[0], x[200:250])
    with pytest.raises(UsageError, match="have a part 'test', and a test set was given too"):
        plain.task(None, student, {"train": (x, y), "test": (x, y)}, test=(x, y))
    with pytest.raises(UsageError, match="too few"):
        plain.task(None, nn.Linear(4, 2), (x[:4], torch.tensor([0, 1, 0, 1])))


@pytest.mark.parametrize("n", [9, 60, 300, 1500, 70_000])
def test_the_budget_suits_the_number_of_samples(n: int) -> None:
    x, y = blobs(n)
    made = plain.task(None, student, {"train": (x, y), "valid": (x, y), "test": (x, y)})
    per_epoch = n // made.budget.batch
    assert per_epoch >= 1
    assert made.budget.total(per_epoch) >= max(1500, 10 * per_epoch)
    assert made.budget.total(per_epoch) <= max(1500 + per_epoch, 10 * per_epoch)


def test_tensors_that_are_no_table_stay_as_they_are() -> None:
    x = torch.randn(60, 1, 4, 4) * 9
    made = plain.task(
        None, lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), (x, torch.arange(60) % 2)
    )
    assert made.readers == {}
    assert made.about["inputs"] == {"kind": "tensors", "shape": [1, 4, 4]}
    tokens = (torch.arange(60)[:, None] % 7, torch.arange(60) % 2)
    net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(4, 2))
    assert plain.task(None, net, tokens).readers == {}


def test_words_name_everything(nets: str, tmp_path: Path) -> None:
    made = plain.task("none", f"{nets}:Net", "sklearn:wine", target=None, taps={"mid": ("a", "b")})
    assert isinstance(made.the_teacher(), Nobody)
    assert made.name == "wine"
    assert made.classes == 3
    assert made.taps == {"mid": ("a", "b")}
    assert made.data["names"] == ("class_0", "class_1", "class_2")
    assert made.about["names"] == ["class_0", "class_1", "class_2"]
    assert made.about["source"] == "sklearn:wine"
    assert made.new_student(0).body.in_features == 13  # a lazy layer has seen a sample
    assert made.new_student(0).head.out_features == 3
    x, y = blobs(60)
    rows = [
        "a,b,c,d,y",
        *(",".join(map(str, r)) + f",{k}" for r, k in zip(x.tolist(), y.tolist(), strict=True)),
    ]
    for name, part in (("train", rows[:46]), ("test", [rows[0], *rows[46:]])):
        (tmp_path / f"{name}.csv").write_text("\n".join(part))
    made = plain.task(None, student, tmp_path / "train.csv", test=str(tmp_path / "test.csv"))
    assert torch.equal(made.test[0], x[45:])
    assert "column 'y'" in made.notes[0]


# -- models ----------------------------------------------------------------------------------------


def test_a_teacher_gets_the_columns_that_it_knows() -> None:
    data = blobs()
    made = plain.task(Knows(raw=False), student, data)
    assert made.readers["teacher"] is made.readers["student"]
    assert len(made.notes) == 1
    made = plain.task(Knows(raw=True), student, data)
    assert set(made.readers) == {"student"}
    assert "given the columns as they are (mean recall 1.0000 on valid, 0." in made.notes[1]
    value = measure(made.the_teacher().module, Table(made.test), made.score)
    assert value == 1.0


def test_a_teacher_at_chance_is_doubted(nets: str) -> None:
    fixed = nn.Linear(4, 3)
    nn.init.zeros_(fixed.weight)
    made = plain.task(fixed, student, blobs())
    assert "mean recall 0.3333 for 3 classes); if it is not trained yet" in made.notes[-1]
    assert made.readers["teacher"] is made.readers["student"]


def test_untrained_teachers(nets: str) -> None:
    data = blobs()
    for words, pretrained, why in (
        (f"{nets}:Net", True, "it has no weights"),
        (f"{nets}:sized", False, "it was said not to be trained yet"),
        (f"{nets}:sized", True, "it has 5 classes and the data have 3"),
    ):
        teacher = plain.task(words, student, data, pretrained=pretrained).the_teacher()
        assert isinstance(teacher, Untrained)
        assert teacher.why == why
        assert teacher.new()(torch.zeros(2, 4)).shape == (2, 3)
    teacher = plain.task(Knows(True), student, data, pretrained=False).the_teacher()
    assert isinstance(teacher, Untrained)


def test_other_counts_of_classes_are_refused(nets: str) -> None:
    data = blobs()
    for teacher in (f"{nets}:five", Knows(True, classes=5)):
        with pytest.raises(UsageError, match="gives 5 classes and the data have 3"):
            plain.task(teacher, student, data)
    with pytest.raises(UsageError, match="the student 'five' gives 5 classes and the data have 3"):
        plain.task(None, f"{nets}:five", data)
    with pytest.raises(UsageError, match=r"'narrow' does not take samples of shape \(4,\)"):
        plain.task(None, f"{nets}:narrow", data)
    with pytest.raises(UsageError, match="does not know 'timm:resnet18'"):
        plain.task(None, "timm:resnet18", data)
    with pytest.raises(UsageError, match="the augmentation 'flip' is for pictures"):
        plain.task(None, student, data, augment="flip")


def test_a_cache_is_read_as_it_was_written(tmp_path: Path) -> None:
    data = blobs()
    for raw in (True, False):
        made = plain.task(Knows(raw), student, data)
        folder = tmp_path / f"raw-{raw}"
        cache_teacher(made, folder, ("logits",))
        again = plain.task(Cached(folder), student, data, budget=QUICK)
        assert isinstance(again.the_teacher(), Cached)
        assert ("teacher" in again.readers) is not raw
        result = limbeck.run("kd", again, label=0.0)
        assert result.facts["score"] > 0.9


def test_a_run_and_the_teacher_that_comes_of_it(nets: str, tmp_path: Path) -> None:
    made = plain.task(f"{nets}:Net", f"{nets}:sized", blobs(), budget=QUICK)
    assert made.budget is QUICK
    result = limbeck.run("kd", made, out=tmp_path / "run")
    assert result.facts["teacher"] > 0.9
    assert result.facts["score"] > 0.9
    frozen = plain.task(result.model, student, blobs())
    assert isinstance(frozen.the_teacher(), Frozen)
    assert "teacher" in frozen.readers
    assert len(frozen.notes) == 1


def test_the_students_name_is_its_identity(nets: str) -> None:
    made = plain.task(None, f"{nets}:sized", blobs())
    assert made.student.__qualname__ == f"{nets}:sized"
