"""Sides and taps: lazy looks, early exit, and what is said when something is not there."""

from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.data import Batch
from limbeck.core.taps import Taps, UpTo, module_at
from limbeck.core.views import Fixed, Look, entries_of
from limbeck.errors import Missing, UsageError


class Net(nn.Module):
    """Three layers that count their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [0, 0, 0]
        self.one, self.two, self.head = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)
        for i, layer in enumerate((self.one, self.two, self.head)):
            layer.register_forward_pre_hook(lambda *_, i=i: self.count(i))

    def count(self, i: int) -> None:
        self.calls[i] += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.two(torch.relu(self.one(x)))))
        return out


X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
PATHS: dict[str, Any] = {
    "first": "one",
    "mid": "two",
    "embedding": "head:in",
    "all": ["one", "two"],
}


def test_entries_are_the_modules_outputs_and_inputs() -> None:
    torch.manual_seed(0)
    net = Net()
    look = Look(net, "student", PATHS)
    s = look.side_of(Batch(x=X))
    one = net.one(X)
    two = net.two(torch.relu(one))
    assert torch.equal(s.first, one)
    assert torch.equal(s.mid, two)
    assert torch.equal(s.embedding, torch.relu(two))
    assert torch.equal(s.logits, net.head(torch.relu(two)))
    assert [torch.equal(a, b) for a, b in zip(s.all, (one, two), strict=True)] == [True, True]
    look.close()
    assert not any(m._forward_hooks for m in net.modules())


def test_a_model_runs_when_its_first_entry_is_asked_and_only_once() -> None:
    net = Net()
    look = Look(net, "student", PATHS)
    s = look.side_of(Batch(x=X))
    assert net.calls == [0, 0, 0]
    _ = s.mid, s.logits, s.first
    assert net.calls == [1, 1, 1]
    again = s(2 * X)
    assert net.calls == [1, 1, 1]
    assert torch.equal(again.logits, net(2 * X))
    assert {"mid", "logits", "first", "again"} == look.asked
    assert s.model is net
    assert "weights" in look.asked


def test_a_teacher_stops_after_its_last_needed_tap_from_the_second_step_on() -> None:
    net = Net().eval()
    look = Look(net, "teacher", PATHS, grad=False, early=True)

    def step(*entries: str) -> list[int]:
        net.calls = [0, 0, 0]
        t = look.side_of(Batch(x=X))
        for entry in entries:
            getattr(t, entry)
        look.settle()
        return net.calls

    assert step("first") == [1, 1, 1]  # nothing is planned yet
    assert step("first") == [1, 0, 0]
    assert step("first", "mid") == [2, 1, 1]  # an unplanned ask runs it once in full
    assert step("mid", "first") == [1, 1, 0]  # and widens the plan
    assert step("logits") != [0, 0, 0]
    assert step("logits") == [1, 1, 1]


def test_what_is_seen_of_a_pass_that_stopped_equals_the_whole_one() -> None:
    net = Net().eval()
    look = Look(net, "teacher", PATHS, grad=False, early=True)
    whole = look.side_of(Batch(x=X)).mid
    look.settle()
    net.calls = [0, 0, 0]
    assert torch.equal(look.side_of(Batch(x=X)).mid, whole)
    assert net.calls[2] == 0


def test_without_gradient_a_view_has_no_graph() -> None:
    net = Net()
    assert not Look(net, "teacher", grad=False).side_of(Batch(x=X)).logits.requires_grad
    assert Look(net, "student").side_of(Batch(x=X)).logits.requires_grad


def test_the_reader_stands_between_raw_inputs_and_the_model() -> None:
    net = Net()
    look = Look(net, "student", reader=lambda words: torch.stack([X[w] for w in words]))
    assert torch.equal(look.side_of(Batch(x=[2, 0])).logits, net(X[[2, 0]]))


def test_an_absent_entry_names_what_there_is_and_what_to_do() -> None:
    s = Look(Net(), "student", {"mid": "two"}).side_of(Batch(x=X))
    with pytest.raises(Missing, match=r"asked for 'embedding', but it gives logits, mid"):
        _ = s.embedding
    with pytest.raises(Missing, match=r'taps=\{"embedding"'):
        _ = s.embedding


def test_a_misspelt_tap_names_the_nearest_modules() -> None:
    with pytest.raises(Missing, match=r"no module 'tow'; did you mean 'two'"):
        Look(Net(), "teacher", {"mid": "tow"})
    with pytest.raises(Missing, match="teacher"):
        module_at(Net(), "three", "teacher")
    with pytest.raises(UsageError, match="ends in ':out'"):
        Look(Net(), "teacher", {"mid": "two:out"})


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(self.body(x))
        return out


@pytest.mark.parametrize("grad", [True, False])
def test_a_tapped_tensor_changed_in_place_is_an_error_that_names_the_module(grad: bool) -> None:
    s = Look(InPlace(), "student", {"mid": "body", "late": "act"}, grad=grad).side_of(Batch(x=X))
    assert torch.equal(s.late, s.logits)
    with pytest.raises(UsageError, match="the tap 'mid' at 'body' was changed in place"):
        _ = s.mid


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(self.body(x))
        return out


def test_a_module_that_runs_twice_cannot_be_tapped() -> None:
    s = Look(Twice(), "student", {"mid": "body"}).side_of(Batch(x=X))
    with pytest.raises(UsageError, match="runs more than once"):
        _ = s.mid


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.table = nn.LSTM(4, 3, batch_first=True), nn.Identity()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
        return {"logits": self.lstm(a)[0], "loss": b.sum(), "none": None, "t": self.table([a])}


def test_dicts_and_tuples_go_in_and_come_out_by_name() -> None:
    net, b = Pair(), torch.ones(2)
    look = Look(net, "student", {"mid": "lstm", "bad": "table"})
    by_name = look.side_of(Batch(x={"a": X[None], "b": b}))
    assert torch.equal(by_name.mid, by_name.logits)  # the first tensor of the module's tuple
    assert float(by_name.loss) == 2
    assert torch.equal(look.side_of(Batch(x=(X[None], b))).logits, by_name.logits)
    with pytest.raises(Missing, match="'none'"):
        _ = by_name.none
    assert set(entries_of((X, b))) == {"logits", "output1"}
    with pytest.raises(UsageError, match="a model's output is a str"):
        entries_of("x")


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.body(x)
        return x


def test_hooks_are_silent_outside_a_look() -> None:
    net = Odd()
    taps = Taps(net, {"mid": "body"}, "student")
    net(X)
    net(X)
    _, seen = taps.run(lambda: net(X))
    value = taps.entry("mid", seen)
    assert isinstance(value, torch.Tensor)
    assert torch.equal(value, net.body(X))
    taps.close()


def test_up_to_runs_nothing_above_and_has_the_models_parameters() -> None:
    net = Net()
    below = UpTo(net, "two", "mid")
    out = below(X)
    assert set(out) == {"mid"}
    assert net.calls == [1, 1, 0]
    assert torch.equal(out["mid"], net.two(torch.relu(net.one(X))))
    out["mid"].sum().backward()
    assert net.head.weight.grad is None
    assert net.one.weight.grad is not None
    with pytest.raises(Missing, match="did you mean 'two'"):
        UpTo(net, "tow", "mid")


def test_a_fixed_view_refuses_what_it_cannot() -> None:
    asked: set[str] = set()
    t = Fixed("teacher", lambda: {"labels": X}, Batch(x=X), asked, "it is a black box")
    assert t.labels is X
    for ask in (lambda: t.logits, lambda: t(X), lambda: t.model):
        with pytest.raises(Missing, match="it is a black box"):
            ask()
    assert asked == {"labels", "logits", "again", "weights"}
