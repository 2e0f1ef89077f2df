"""The worlds of language: what their data are, and that their teachers know more."""

import pytest
import torch

from limbeck.bench import worlds
from limbeck.bench.worlds import _text, charlm
from limbeck.core.data import Table
from limbeck.core.evaluate import measure, score_teacher
from limbeck.core.text.places import IGNORED
from limbeck.errors import Missing, UsageError

pytestmark = pytest.mark.xdist_group("text_worlds")
needs_bible = pytest.mark.skipif(_text.usual() != "kjv", reason="needs Debian's package bible-kjv")


def test_samples_are_the_text_in_pieces() -> None:
    task = worlds.make("charlm(text='topics')", tiny=True)
    words, letters = _text.english("topics"), task.data["text"].tokenizer
    ids = torch.cat([task.set(part)["x"]["ids"] for part in ("train", "valid", "test")])
    assert ids.shape == (160 + 64, 16)
    said = {letters.decode(row.tolist()) for row in ids}
    assert said == {words[i * 16 : i * 16 + 16] for i in range(len(ids))}
    train = task.train
    assert torch.equal(train["y"][:, 1:], train["x"]["ids"][:, 1:])
    assert bool((train["y"][:, 0] == IGNORED).all())
    assert train["bytes"].tolist() == [15] * 160


def test_prompts_are_half_of_a_sample() -> None:
    task = worlds.make("charlm(text='topics', prompted=True)", tiny=True)
    assert (task.train["y"] == IGNORED).sum(1).tolist() == [8] * 160
    assert int(task.train["bytes"][0]) == 8


@needs_bible
def test_the_king_james_version() -> None:
    words = _text.english("kjv")
    assert words.startswith("In the beginning God created the heaven and the earth.")
    assert 4_000_000 < len(words) < 4_500_000


def test_teacher_knows_more_than_chance_and_is_read_again() -> None:
    task, again = (worlds.make("charlm", tiny=True) for _ in range(2))
    table = Table(task.test, "test")
    found = score_teacher(task, table, torch.device("cpu"))
    new = measure(task.new_student(0), table, task.score, task.readers["student"])
    assert found is not None
    assert found < 0.75 * new
    pairs = zip(task.teacher.module.parameters(), again.teacher.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("charlm(teacher='large')", "give layers x width"),
        ("charlm(student='2x10')", "a multiple of 8"),
        ("charlm(context=4)", "context is 4"),
        ("charlm(n=1000000)", "more than the text has"),
        ("charlm(text='poems')", "not on this machine"),
    ],
)
def test_options_that_cannot_be(spec: str, words: str) -> None:
    with pytest.raises((UsageError, Missing), match=words):
        worlds.make(spec, tiny=True)


def test_letters_are_written_out() -> None:
    letters = charlm.letters("abca")
    assert letters == ["a", "b", "c"]
    assert charlm._Letters(letters).decode([4, 2, 0, 1, 3]) == "cab"
