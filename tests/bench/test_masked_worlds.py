"""`masklm` and `glosscls`: what their data are, what is hidden, and that teachers know more."""

import pytest
import torch

from limbeck.bench import worlds
from limbeck.bench.worlds import _text, glosscls, masklm
from limbeck.core.data import Table
from limbeck.core.evaluate import measure, score_teacher
from limbeck.core.text.places import IGNORED
from limbeck.errors import Missing, UsageError

pytestmark = pytest.mark.xdist_group("masked_worlds")
needs_wordnet = pytest.mark.skipif(
    not (glosscls.DEBIAN / "data.noun").is_file(), reason="needs Debian's package wordnet-base"
)


def test_pieces_are_the_text_with_some_letters_hidden() -> None:
    task = worlds.make("masklm(text='topics', teacher='none')", tiny=True)
    words, letters = _text.english("topics"), task.data["text"].tokenizer
    said = set()
    for part, n in (("train", 160), ("valid", 32), ("test", 32)):
        rows = task.set(part)
        assert rows["x"]["ids"].shape == rows["y"].shape == rows["tokens"].shape == (n, 16)
        assert bool((rows["tokens"][:, 0] == IGNORED).all())
        assert (rows["y"] != IGNORED).sum(1).tolist() == [2] * n  # 15 % of 15
        hidden = rows["y"] != IGNORED
        assert torch.equal(rows["y"][hidden], rows["tokens"][hidden])
        whole = torch.where(rows["tokens"] != IGNORED, rows["tokens"], rows["x"]["ids"])
        assert torch.equal(whole[~hidden], rows["x"]["ids"][~hidden])
        said |= {letters.decode(row.tolist()) for row in whole}
    assert said == {words[i * 16 : i * 16 + 16] for i in range(224)}


def test_the_student_lacks_token_types_and_is_the_shallower() -> None:
    task = worlds.make("masklm", tiny=True)
    teacher, student = task.teacher.module, task.new_student(0)
    assert type(student).__name__ == "DistilBertForMaskedLM"
    assert student.config.num_hidden_layers < teacher.config.num_hidden_layers
    assert student.config.hidden_size == teacher.config.hidden_size
    assert not any("token_type" in name for name in student.state_dict())


def test_a_tiny_teacher_of_letters_knows_more_than_their_frequencies() -> None:
    task, again = (worlds.make("masklm", tiny=True) for _ in range(2))
    table = Table(task.test, "test")
    found = score_teacher(task, table, torch.device("cpu"))
    tokens = task.train["tokens"]
    counts = tokens[tokens != IGNORED].bincount(minlength=task.data["text"].vocab) + 0.5
    y = task.test["y"]
    alone = -(counts / counts.sum()).log()[y[y != IGNORED]].mean()
    assert found is not None
    assert found < float(alone) - 0.05
    assert found < measure(task.new_student(0), table, task.score, task.readers["student"])
    pairs = zip(task.teacher.module.parameters(), again.teacher.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_hidden_letters_are_written_out() -> None:
    letters = masklm.Letters(["a", "b"])
    assert letters.decode([2, 1, 3, 0], skip_special_tokens=False) == "a_b"
    assert letters.decode([2, 1, 3, 0]) == "ab"


@needs_wordnet
def test_glosses_are_of_the_files_that_wordnet_puts_them_in() -> None:
    texts, labels = glosscls.glosses()
    assert len(texts) == len(set(texts)) == len(labels) > 60_000
    known = dict(zip(texts, labels, strict=True))
    assert glosscls.NAMES[known["that which is perceived or known or inferred to have its own "
                                "distinct existence (living or nonliving)"]] == "Tops"  # fmt: skip
    assert set(labels) == set(range(26))
    line = next(
        row for row in (glosscls.DEBIAN / "data.noun").read_text("utf-8").splitlines()
        if " dog 0 domestic_dog " in row
    )  # fmt: skip
    gloss = line.partition(" | ")[2].partition('; "')[0].strip()
    assert glosscls.NAMES[known[gloss]] == "animal"


@needs_wordnet
def test_a_tiny_teacher_of_glosses_beats_the_commonest_class() -> None:
    task = worlds.make("glosscls", tiny=True)
    table = Table(task.test, "test")
    found = score_teacher(task, table, torch.device("cpu"))
    assert found is not None
    assert found > float(table.labels().bincount().max()) / len(table)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("masklm(teacher='large')", "give layers x width"),
        ("masklm(context=4)", "context is 4"),
        ("masklm(n=1000000)", "more than the text has"),
        ("masklm(text='poems')", "not on this machine"),
    ],
)
def test_options_that_cannot_be(spec: str, says: str) -> None:
    with pytest.raises((UsageError, Missing), match=says):
        worlds.make(spec, tiny=True)
