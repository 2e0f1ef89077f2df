"""A teacher's signal on disk: what is kept of it, read back at any place, and written again."""

import dataclasses
import json

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers")

from limbeck.bench import worlds
from limbeck.core.cache import Cache
from limbeck.core.caching import cache_teacher
from limbeck.core.data import Table
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.signals import Sampled, Signal, TopK
from limbeck.core.teacher import Setting
from limbeck.core.text.kept import Keep, Packed, packed
from limbeck.core.text.places import wanted
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("text_worlds")
CLOCK = Clock(0, "cache", 0, 1, 1)


@pytest.fixture(scope="module")
def task():
    return worlds.make("charlm", tiny=True)


def written(task, folder, keep, batch=16, seed=0):
    with Run(task):
        return cache_teacher(task, folder, keep=keep, batch=batch, seed=seed)


def both(task, cached):
    """What the cache and the live teacher say of some samples, in another order."""
    batch = Table(task.train).rows(torch.tensor([7, 3, 150]))
    live = task.teacher.attach(Setting(reader=task.readers["teacher"]))
    stored = cached.attach(Setting(reader=task.readers["teacher"]))
    where = wanted(batch.y)
    with torch.no_grad():
        return stored.side(batch, CLOCK).signal.at(where), live.side(batch, CLOCK).signal.at(where)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_likeliest_tokens_of_each_place(task, tmp_path, tau):
    found, live = both(task, written(task, tmp_path / "c", Keep("topk", 8, tau, bits=8)))
    assert isinstance(found, TopK)
    assert found.tau == tau
    exact = live.log_p(tau).topk(8)
    assert torch.equal(found.ids, exact.indices.sort(-1).values)
    order = exact.indices.argsort(-1)
    p, q = found.logp.exp(), exact.values.gather(-1, order).exp()
    assert (p - q).abs().max() < 0.02
    torch.testing.assert_close(p.sum(-1), q.sum(-1), atol=2e-3, rtol=0)


def test_draws_do_not_depend_on_the_cut(task, tmp_path):
    one, _ = both(task, written(task, tmp_path / "a", Keep("sampled", 12), batch=16))
    two, live = both(task, written(task, tmp_path / "b", Keep("sampled", 12), batch=5))
    assert isinstance(one, Sampled)
    assert torch.equal(one.ids, two.ids)
    other, _ = both(task, written(task, tmp_path / "d", Keep("sampled", 12), seed=1))
    assert not torch.equal(one.ids, other.ids)
    drawn = live.log_p().exp().gather(-1, one.ids)
    assert drawn.mean() > live.log_p().exp().mean() * 3  # the likely ones
    torch.testing.assert_close(one.weights, torch.full_like(one.weights, 1 / 12))


def test_bytes_are_those_of_the_layout(task, tmp_path):
    keep = Keep("topk", 8)
    written(task, tmp_path / "c", keep)
    cache = Cache(tmp_path / "c")
    width = keep.layout(task.data["text"].vocab).width
    assert cache.rows([0])["packed"].shape == (1, 16, width)
    made = json.loads((tmp_path / "c" / "cache.json").read_text())["made"]
    assert made["keep"]["k"] == 8
    assert made["keep"]["vocab"] == task.data["text"].vocab


def test_other_entries_into_the_same_folder_are_refused(task, tmp_path):
    written(task, tmp_path / "c", Keep("topk", 8))
    with pytest.raises(UsageError, match="keep"):
        written(task, tmp_path / "c", Keep("topk", 4))


def test_other_texts_are_refused(task, tmp_path):
    cached = written(task, tmp_path / "c", Keep("topk", 8))
    train = task.train
    other = {**train, "x": {**train["x"], "ids": train["x"]["ids"].flip(0)}}
    with pytest.raises(UsageError, match="samples"):
        cached.attach(Setting(reader=task.readers["teacher"])).check(Table(other))


def test_what_has_no_whole_distribution_cannot_be_kept(task):
    batch = Table(task.train).rows(torch.arange(2))
    few: Signal = Sampled(torch.zeros(2, 16, 1).long(), torch.ones(2, 16, 1), 30)
    with pytest.raises(UsageError, match="whole distribution"):
        packed(Keep(), few, batch, 0)


def test_a_record_that_is_none():
    rows = torch.zeros(1, 1, 4, dtype=torch.uint8)
    with pytest.raises(UsageError, match="which is not read"):
        Packed(rows, {"kind": "topk", "vocab": 9, "colour": 1})


def test_more_entries_than_tokens_are_all_of_them(task, tmp_path):
    found, live = both(task, written(task, tmp_path / "c", Keep("topk", 500, bits=8)))
    assert found.ids.shape[-1] == live.vocab
    kl = (live.log_p().exp() * (live.log_p() - found.logp)).sum(-1)
    assert float(kl.mean()) < 1e-3
    assert dataclasses.asdict(Keep())["k"] == 50
