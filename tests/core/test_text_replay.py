"""Texts that are kept: what comes back, what gives way, exact resume; prompts cut from texts."""

import pytest
import torch

from limbeck.core import checkpoints
from limbeck.core.tables import Batch
from limbeck.core.text.places import IGNORED
from limbeck.core.text.replay import Replay, joined, prompts_of
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("text")


def batch(*texts, start=1, left=False, index=None):
    """Texts as a padded batch, labels from a place on; padding is nonsense, to be noticed."""
    width = max(map(len, texts)) + 1

    def rows(of, fill):
        gap = [[fill] * (width - len(t)) for t in texts]
        each = [(g + of(t)) if left else (of(t) + g) for t, g in zip(texts, gap, strict=True)]
        return torch.tensor(each)

    return Batch(
        x={"ids": rows(list, 77), "mask": rows(lambda t: [1] * len(t), 0)},
        y=rows(lambda t: [IGNORED] * min(start, len(t)) + t[start:], IGNORED),
        index=index,
    )


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def texts(found):
    mask = found.x["mask"].bool()
    return [tuple(i[m].tolist()) for i, m in zip(found.x["ids"], mask, strict=True)]


@pytest.mark.parametrize("left", [False, True])
def test_what_was_added_comes_back_without_its_padding(left):
    kept = Replay(9, pad=5)
    given = [[1, 2, 3, 4], [6, 7], [8, 9, 10]]
    kept.add(batch(*given, start=2, left=left, index=torch.tensor([30, 10, 20])))
    found = kept.draw(3, rng())
    assert sorted(texts(found)) == sorted(map(tuple, given))
    assert found.x["ids"].shape == (3, 4)
    assert (found.x["mask"].diff(dim=1) <= 0).all()
    assert (found.x["ids"][found.x["mask"] == 0] == 5).all()
    for text, y, number in zip(texts(found), found.y.tolist(), found.index, strict=True):
        want = [IGNORED, IGNORED, *text[2:]]
        assert y == want + [IGNORED] * (4 - len(want))
        assert int(number) == {1: 30, 6: 10, 8: 20}[text[0]]


def test_the_oldest_give_way():
    kept = Replay(3)
    for i in range(5):
        kept.add(batch([i, i], [10 + i]))
    assert len(kept) == 3
    assert sorted(texts(kept.draw(3, rng()))) == [(4, 4), (13,), (14,)]


def test_a_draw_is_a_function_of_what_was_added_and_the_generator():
    one, other = Replay(20), Replay(20)
    one.add(batch(*([i] for i in range(20))))
    for i in range(20):
        other.add(batch([i]))
    first = texts(one.draw(5, rng(1)))
    assert first == texts(other.draw(5, rng(1))) == texts(one.draw(5, rng(1)))
    assert first != texts(one.draw(5, rng(2)))
    assert len(set(first)) == 5
    seen = {t for seed in range(40) for t in texts(one.draw(5, rng(seed)))}
    assert len(seen) == 20


def test_what_is_kept_does_not_move_with_what_was_given():
    kept, given = Replay(2), batch([1, 2, 3])
    kept.add(given)
    given.x["ids"].zero_()
    assert texts(kept.draw(1, rng())) == [(1, 2, 3)]


@pytest.mark.parametrize("count", [0, 4])
def test_a_run_goes_on_exactly(tmp_path, count):
    from safetensors.torch import load_file, save_file

    kept = Replay(3)
    for i in range(count):
        kept.add(batch([i] * (i + 1), index=torch.tensor([7 * i])))
    tensors = {}
    packed = checkpoints.pack(kept.state(), tensors, "batches")
    save_file(tensors, tmp_path / "kept.safetensors")
    again = Replay(3)
    again.add(batch([99]))
    again.load(checkpoints.unpack(packed, load_file(tmp_path / "kept.safetensors")))
    assert len(again) == min(count, 3)
    for each in (kept, again):
        each.add(batch([50, 51, 52]))  # the same one gives way in both
    n = len(kept)
    a, b = kept.draw(n, rng()), again.draw(n, rng())
    assert torch.equal(a.x["ids"], b.x["ids"])
    assert torch.equal(a.y, b.y)
    assert torch.equal(a.index, b.index)


def test_too_many_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        Replay(0)
    kept = Replay(4)
    kept.add(batch([1], [2]))
    for n in (0, 3):
        with pytest.raises(UsageError, match=f"{n} texts were asked of a replay that holds 2"):
            kept.draw(n, rng())


def rows(ids, mask):
    return [i[m.bool()].tolist() for i, m in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("left", [False, True])
def test_prompts_end_before_the_first_label(left):
    given = batch([1, 2, 3, 4, 5], [6, 7, 8, 9], [3, 4, 5], start=3, left=left)
    ids, mask = prompts_of(given, 4, None, pad=9)
    assert rows(ids, mask) == [[1, 2, 3], [6, 7, 8], [3, 4, 5]]  # the last is all prompt
    assert ids.shape == (3, 3)
    ids, mask = prompts_of(given, 4, 6)
    assert rows(ids, mask) == [[2, 3], [7, 8], [4, 5]]
    turns = batch([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], start=2)
    turns.y[0, 3:4] = IGNORED  # a second turn of the user
    assert rows(*prompts_of(turns, 1, None)) == [[1, 2], [1, 2]]


def test_a_plain_text_begins_with_as_many_tokens_as_asked():
    plain = batch([1, 2, 3, 4, 5], [6, 7])
    assert rows(*prompts_of(plain, 1, None)) == [[1], [6]]
    assert rows(*prompts_of(plain, 1, None, least=3)) == [[1, 2, 3], [6, 7]]
    told = batch([1, 2, 3, 4, 5], [6, 7, 8], start=2)
    assert rows(*prompts_of(told, 1, None, least=3)) == [[1, 2], [6, 7]]


def test_prompts_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="8 new tokens leave room for 0 of a prompt in a context"):
        prompts_of(batch([1, 2, 3]), 8, 8)
    with pytest.raises(UsageError, match="and 5 are needed"):
        prompts_of(batch([1, 2, 3]), 4, 8, least=5)
    with pytest.raises(UsageError, match="1 of 1 prompts have no token"):
        prompts_of(batch([1, 2, 3], start=0), 4, 8)


def test_a_prompt_and_its_answer_make_a_training_row():
    ids, mask = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    said, valid = torch.tensor([[5, 6], [7, 8]]), torch.tensor([[1, 0], [1, 1]])
    got_ids, got_mask, y = joined(ids, mask, said, valid, 0)
    assert got_ids.tolist() == [[1, 2, 3, 5, 0], [4, 7, 8, 0, 0]]
    assert got_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    no = IGNORED
    assert y.tolist() == [[no, no, no, 5, no], [no, 7, 8, no, no]]
