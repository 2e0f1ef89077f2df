"""What Python's mistakes end in before anything is trained, and what numpy's arrays become."""

import numpy as np
import pytest
import torch
from torch import nn

import limbeck
from limbeck.core.first_look import check_models
from limbeck.core.objectives import Labels
from limbeck.core.task import Budget, Score, Task
from limbeck.core.teachers import BlackBox, Nobody
from limbeck.core.untrained import Untrained
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("first_look")

X = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(90) % 3
KD = ("logits", "y")


def net(classes: int, columns: int = 5):
    return lambda: nn.Linear(columns, classes)


def task(teacher=None, student=None, x=X, y=Y, **more) -> Task:
    more = {"budget": Budget(steps=2, batch=16), **more}
    return Task(teacher, student or net(3), (x, y), (x, y), (x, y), **more)


class Pairs(torch.utils.data.Dataset):
    """Samples that are not in memory, as numpy and Python give them, in the order of classes."""

    def __init__(self, first: int = 0, kind: type = np.float64) -> None:
        self.x, self.first = X.numpy().astype(kind), first

    def __len__(self) -> int:
        return 90

    def __getitem__(self, i: int):
        return self.x[i], i // 30 + self.first


FEW = "labels of 'train' go from 0 to 2: 3 classes, but the {} has 2 logits; give one with 3, or"
ONE = "labels of 'train' go from 1 to 3, and the student has 3 logits; .* so subtract 1"
WIDE = "samples are float64 and the weights of the student float32; convert them with x.float()"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (task(student=net(2)), FEW.format("student")),
        (task(student=net(2), budget=Budget(precision="bf16")), FEW.format("student")),
        (task(student=nn.Linear(5, 2)), FEW.format("student")),
        (task(Untrained(net(2))), FEW.format("teacher")),
        (task(y=Y + 1), ONE),
        (Task(None, net(3), Pairs(1, np.float32)), ONE),
        (Task(None, net(2), Pairs(0, np.float32)), FEW.format("student")),
        (task(x=X.double()), WIDE),
        (Task(None, net(3), Pairs()), WIDE),
        (task(student=net(3, 7)), r"the student does not take samples of shape \(5,\)"),
        (task(nn.Linear(7, 3)), r"the teacher does not take samples of shape \(5,\)"),
    ],
)
def test_what_cannot_be_learned_is_refused(given: Task, told: str) -> None:
    with pytest.raises(UsageError, match=told.replace("x.float()", r"x\.float\(\)")):
        check_models(given, KD)


class Elsewhere(nn.Linear):
    """A module that this device cannot run."""

    def forward(self, x):
        raise RuntimeError("no kernel image is available for execution on the device")


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        (task(nn.Linear(5, 3)), KD),
        (task(nn.Linear(5, 5), net(5)), KD),  # more classes than this split has
        (task(student=net(2)), ("student:embedding", "y")),  # its outputs are no classes
        (task(student=net(2)), ("logits", "index")),
        (task(nn.Linear(7, 3)), ("embedding", "student:logits", "y")),  # read inside alone
        (task(y=torch.rand(90)), KD),
        (task(x=X.double(), student=lambda: nn.Linear(5, 3).double()), KD),
        (task(x=X.double(), readers={"student": lambda x: x.float()}), KD),
        (task(BlackBox(lambda x: x, "labels")), KD),
        (task(student=lambda: Elsewhere(5, 3)), KD),
        (Task(None, net(3), None, (X, Y)), KD),
    ],
)
def test_what_may_be_learned_is_let_be(given: Task, needs: tuple[str, ...]) -> None:
    check_models(given, needs)


def test_a_look_leaves_models_and_draws_alone() -> None:
    teacher = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout())
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    drawn = torch.get_rng_state()
    check_models(task(teacher, lambda: nn.LazyLinear(3)), KD)
    assert torch.equal(drawn, torch.get_rng_state())
    assert teacher.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_labels_alone_say_what_they_need() -> None:
    assert Labels().asks() == ("student:logits", "y")
    assert Labels(label=0).asks() == ()


class Net(nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 3)


def test_a_class_is_no_teacher() -> None:
    told = r"the teacher is the class Net, not a model; .* limbeck.Untrained\(Net\)"
    with pytest.raises(UsageError, match=told):
        limbeck.run("kd", task(Net))
    with pytest.raises(UsageError, match=r"the class Nobody, .* of it, Nobody\(\.\.\.\)"):
        limbeck.run("kd", task(Nobody))
    assert limbeck.run("kd", task(Net())).facts["teacher"] is not None
    assert limbeck.run("kd", task(lambda: Net())).model is not None  # a factory's is trained
    limbeck.run("kd", task(Net(), Net))  # a student may be drawn from its class


def test_arrays_of_numpy_are_taken_as_tensors() -> None:
    arrays = (X.double().numpy(), Y.int().numpy())
    made = Task(None, net(3), arrays, {"x": arrays[0], "y": arrays[1]}, (X, arrays[1]))
    for x, y in (made.train, tuple(made.valid.values()), made.test):
        assert torch.equal(x, X)
        assert torch.equal(y, Y)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    teacher = Net()
    a, b = (limbeck.run("kd", task(teacher, x=x, y=y)).model for x, y in ((X, Y), arrays))
    assert torch.equal(a.weight, b.weight)
    bytes_ = np.zeros((4, 1, 2, 2), np.uint8)
    assert Task(None, net(3), (bytes_, arrays[1][:4])).train[0].dtype == torch.uint8
    wide = Task(None, net(3), (X.double(), Y)).train
    assert wide[0].dtype == torch.float64  # a tensor's kind was chosen
    with pytest.raises(UsageError, match="'train' holds an array of <U1; give numbers"):
        Task(None, net(3), (arrays[0], np.array(["a"] * 90)))
    other = [(x, 0) for x in X]
    assert Task(None, net(3), other, score=Score("s", True, lambda z, y: 0.0)).train is other
