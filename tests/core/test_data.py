"""Batches, tables and epochs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from limbeck.core.data import Batch, Beside, Epochs, Table, collate
from limbeck.core.method import Clock
from limbeck.core.rng import generator
from limbeck.errors import Missing, UsageError

N = 23
X = torch.arange(N * 2).float().view(N, 2)
Y = torch.arange(N) % 3


class Pairs(Dataset[Any]):
    """A data set with a random transform."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return X[i] + torch.rand(2) + float(np.random.rand()), int(Y[i])


def clock(draw: int, n: int = 0, of: int = 1, stride: int = 1, batch: int = 6) -> Clock:
    per = N // batch
    return Clock(5, "fit", draw, 100, per, n=n, of=of, stride=stride, draw=draw, batch=batch)


def ask(epochs: Epochs, *args: Any, **kwargs: Any) -> Batch:
    return epochs(torch.nn.Identity(), None, clock(*args, **kwargs))


def test_an_epoch_is_a_permutation_by_seed_and_epoch_cut_into_whole_batches() -> None:
    epochs = Epochs((X, Y))
    assert epochs.per_epoch(6) == 3
    for e in range(2):
        order = torch.randperm(N, generator=generator(5, e, "order"))
        for k in range(3):
            batch = ask(epochs, 3 * e + k)
            assert torch.equal(batch.index, order[6 * k : 6 * k + 6])
            assert torch.equal(batch.x, X[batch.index])
            assert torch.equal(batch.y, Y[batch.index])


def test_micro_batches_are_equal_cuts_of_the_same_batch() -> None:
    epochs = Epochs((X, Y))
    whole = ask(epochs, 4)
    cuts = [ask(epochs, 4, n=n, of=3).index for n in range(3)]
    assert torch.equal(torch.cat(cuts), whole.index)


def test_any_place_can_be_asked_first() -> None:
    there = [ask(Epochs((X, Y)), d).index for d in (7, 2)]
    epochs = Epochs((X, Y))
    in_order = [ask(epochs, d).index for d in range(8)]
    assert torch.equal(there[0], in_order[7])
    assert torch.equal(there[1], in_order[2])


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        TensorDataset(X, Y),
        [{"x": x, "label": y} for x, y in zip(X, Y, strict=True)],
        [{"picture": x, "labels": y} for x, y in zip(X, Y, strict=True)],
        [(x, y) for x, y in zip(X, Y.tolist(), strict=True)],
        {"x": X, "y": Y},
        DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
    ],
)
def test_all_kinds_of_sources_give_the_same_columns(source: Any) -> None:
    batch = Table(source).rows(torch.tensor([4, 0]), "place")
    assert torch.equal(batch.x, X[[4, 0]])
    assert torch.equal(batch.y, Y[[4, 0]])
    assert batch.index.tolist() == [4, 0]
    assert len(batch) == 2


def test_dicts_of_several_inputs_and_ragged_values_are_kept() -> None:
    ragged = [{"ids": torch.ones(n), "mask": torch.zeros(n), "y": n} for n in (2, 3)]
    batch = Table(ragged).rows(torch.tensor([0, 1]), "place")
    assert set(batch.x) == {"ids", "mask"}
    assert [len(v) for v in batch.x["ids"]] == [2, 3]
    assert len(batch) == 2
    assert collate([(torch.zeros(2), 1), (torch.ones(2), 0)])["y"].tolist() == [1, 0]


def test_a_data_sets_own_draws_are_a_function_of_seed_epoch_and_number() -> None:
    epochs = Epochs(Pairs())
    torch.manual_seed(1)
    first = ask(epochs, 1)
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    again = ask(Epochs(Pairs()), 1)
    assert torch.equal(torch.rand(1), expected), "the global generator was disturbed"
    assert torch.equal(first.x, again.x)
    other = ask(epochs, 4)  # another epoch, other draws
    for row, number in enumerate(first.index.tolist()):
        if number in other.index.tolist():
            there = other.index.tolist().index(number)
            assert not torch.equal(first.x[row], other.x[there])


def test_worker_processes_give_what_this_process_gives() -> None:
    here, there = Epochs(Pairs()), Epochs(Pairs(), workers=2)
    for draw in (0, 1, 2, 3, 9, 10):  # a jump begins the stream anew
        for n in (0, 1):
            a, b = (ask(e, draw, n=n, of=2) for e in (here, there))
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)


def test_columns_are_read_changed_and_picked() -> None:
    batch = Batch(x=X, y=Y, index=torch.arange(N), extra=[str(i) for i in range(N)])
    some = batch.select(torch.tensor([3, 1]))
    assert some.extra == ["3", "1"]
    assert torch.equal(some.x, X[[3, 1]])
    assert batch.replace(x=X + 1).y is Y
    assert "extra" in batch
    assert "other" not in batch
    with pytest.raises(Missing, match="asked for 'z', but it holds x, y, index, extra"):
        _ = batch.z
    assert {"y", "extra", "z"} <= batch.asked


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ((X[:0], Y[:0]), "'train' is empty"),
        ((X, Y[:5]), r"differ in length \(x 23, y 5\)"),
        (3, "'train' is a int; give tensors"),
        (
            DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * N, N)),
            "samples by WeightedRandomSampler, which a run cannot replay",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(source: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Table(source)


def test_a_loaders_own_collate_is_used() -> None:
    def shifted(samples: list[Any]) -> Any:
        xs, ys = zip(*samples, strict=True)
        return torch.stack(xs) + 100, torch.stack(ys)

    loader = DataLoader([(x, y) for x, y in zip(X, Y, strict=True)], collate_fn=shifted)
    assert torch.equal(Table(loader).rows(torch.tensor([2]), "p").x, X[[2]] + 100)


def test_clocks_of_two_processes_see_disjoint_halves() -> None:
    epochs = Epochs((X, Y))
    base = clock(2, of=2, stride=2)
    halves = [epochs(torch.nn.Identity(), None, replace(base, n=r)).index for r in range(2)]
    assert torch.equal(torch.cat(halves), ask(Epochs((X, Y)), 2).index)


def test_sets_beside_each_other_have_their_own_order_and_are_columns() -> None:
    both = Beside(Epochs((X, Y)), pool=Epochs((X + 100, Y)))
    batch = ask(both, 4)
    alone = ask(Epochs((X, Y)), 4)
    assert torch.equal(batch.index, alone.index)
    assert torch.equal(batch.x, alone.x)
    assert torch.equal(batch.pool.x, X[batch.pool.index] + 100)
    assert not torch.equal(batch.pool.index, batch.index)  # the sets are of one length
    cuts = [ask(both, 4, n=n, of=2) for n in range(2)]
    assert torch.equal(torch.cat([c.pool.index for c in cuts]), batch.pool.index)
    few = batch.select([2, 0])
    assert torch.equal(few.pool.x, batch.pool.x[[2, 0]])
    assert both.first().pool.x.shape == (4, 2)
    assert (both.samples, both.per_epoch(6)) == (N, 3)
    assert torch.equal(both.labels(), Y)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a batch of 6 samples was asked of 'train', which has 5"):
        ask(Beside(Epochs((X, Y)), pool=Epochs(X[:5])), 0)


def test_the_state_of_each_set_beside_is_kept() -> None:
    class Counting(Epochs):
        count = 0

        def state(self) -> dict[str, Any]:
            return {"count": self.count}

        def load(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    one, two = (Beside(Counting(X), other=Counting(X)) for _ in range(2))
    one.main.count, one.others["other"].count = 3, 4  # type: ignore[attr-defined]
    two.load(one.state())
    assert two.state() == {"": {"count": 3}, "other": {"count": 4}}


def test_a_field_called_index_is_refused() -> None:
    class Rows(Pairs):
        def __getitem__(self, i: int) -> Any:
            return {"x": X[i], "index": i * 2}

    with pytest.raises(UsageError, match="have a field 'index', which is the name of a sample"):
        Table(Rows()).rows(torch.arange(3))
    with pytest.raises(UsageError, match="have a field 'index'"):
        Table({"x": X, "index": Y}).rows(torch.arange(3))
