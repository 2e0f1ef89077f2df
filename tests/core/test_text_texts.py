"""Texts from folders, files, data sets and values, as rows of three sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.core.text.texts import read
from limbeck.errors import Missing, UsageError

pytestmark = pytest.mark.xdist_group("text_texts")

WORDS = [f"text number {i}" for i in range(30)]


def lines(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return file


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


# --- where rows come from ------------------------------------------------------------------------


def test_a_list_of_texts_is_split_and_always_alike() -> None:
    found = read(WORDS)
    assert [len(found.train), len(found.valid), len(found.test)] == [24, 3, 3]
    assert sorted(texts(found.train + found.valid + found.test)) == sorted(WORDS)
    assert found == read(list(WORDS))
    assert found.made
    assert found.name == "texts"
    assert found.notes == (
        "no valid set and no test set was given, so 10 % of the training rows for each, 2,000 at "
        "most, were held out: 24 train, 3 valid, 3 test",
    )
    for part in ("train", "valid", "test"):
        assert texts(getattr(found, part)) == [WORDS[i] for i in found.cut[part]]


def test_no_more_than_two_thousand_rows_are_held_out() -> None:
    found = read([f"text {i}" for i in range(30_000)])
    assert [len(found.train), len(found.valid), len(found.test)] == [26_000, 2000, 2000]


def test_a_dict_of_parts_stands_as_it_is() -> None:
    found = read({"train": WORDS, "dev": WORDS[:2], "test": [{"text": "apart"}]})
    assert texts(found.train) == WORDS
    assert texts(found.valid) == WORDS[:2]
    assert texts(found.test) == ["apart"]
    assert not found.made
    assert not found.notes
    assert not found.cut


def test_only_what_is_lacking_is_held_out() -> None:
    found = read(WORDS, test={"train": ["a"], "test": ["b", "c"]})
    assert texts(found.test) == ["b", "c"]
    assert [len(found.train), len(found.valid)] == [27, 3]
    assert found.notes[-1].startswith("no valid set was given, so 10 % of the training rows, 2,000")


def test_a_file_of_text_is_its_paragraphs_or_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_bytes("\ufeffone\r\nmore\r\n\r\n \t\r\ntwo\n\n\nthree\n\n".encode())
    found = read(str(file))
    assert sorted(texts(found.train + found.valid + found.test)) == ["one\nmore", "three", "two"]
    assert found.name == "book"
    assert found.notes[0] == f"each of the 3 paragraphs (between blank lines) of {file} is a text"
    file.write_text("one\ntwo\nthree\n")
    found = read(file)
    assert sorted(texts(found.train + found.valid + found.test)) == ["one", "three", "two"]
    assert found.notes[0] == f"each of the 3 lines of {file} is a text"


def test_a_folder_of_texts_has_one_in_each_file(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / "inner").mkdir(exist_ok=True)
        (tmp_path / "inner" / f"{i}.txt").write_text(f"one {i}\n\ntwo")
    (tmp_path / ".hidden.txt").write_text("no")
    found = read(str(tmp_path))
    assert sorted(texts(found.train + found.valid + found.test)) == [
        f"one {i}\n\ntwo" for i in range(5)
    ]
    assert found.notes[0] == f"each of the 5 .txt files in {tmp_path} is a text"
    assert found.name == tmp_path.name


def test_a_folder_has_files_or_folders_of_sets(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    from pyarrow import parquet

    for i in (0, 1):
        table = pyarrow.table({"text": [f"train {i}"], "more": [[1, 2]]})
        parquet.write_table(table, tmp_path / f"train-0000{i}-of-00002.parquet")
    lines(tmp_path / "validation" / "some.jsonl", [{"text": "valid"}])
    (tmp_path / "test.csv").write_text("text,more\ntest,2\n")
    (tmp_path / "README.md").write_text("no")
    found = read(str(tmp_path))
    assert texts(found.train) == ["train 0", "train 1"]
    assert texts(found.valid) == ["valid"]
    assert texts(found.test) == ["test"]
    assert not found.notes


def test_files_of_rows(tmp_path: Path) -> None:
    rows = [{"text": text} for text in WORDS]
    whole = read(rows)
    assert read(lines(tmp_path / "rows.jsonl", rows)).train == whole.train
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert read(tmp_path / "rows.json").train == whole.train
    (tmp_path / "rows.tsv").write_text("text\tn\n" + "".join(f"{t}\t1\n" for t in WORDS))
    assert read(tmp_path / "rows.tsv").train == whole.train


def test_a_file_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def rows():\n    return {'train': ['a', 'b'], 'valid': ['c'], 'test': ['d']}")
    found = read(f"{file}:rows")
    assert texts(found.train) == ["a", "b"]
    assert found.name == "rows"


def test_a_data_set_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    rows = {"text": WORDS, "label": [i % 2 for i in range(30)]}
    train = datasets.Dataset.from_dict(rows, features=features)
    blind = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    found = read(train)
    assert found.names == ("pos", "neg")  # in their order, not sorted
    assert sorted(
        (r["text"], r["label"]) for r in found.train + found.valid + found.test
    ) == sorted(zip(WORDS, rows["label"], strict=True))
    whole = datasets.DatasetDict({"train": train, "validation": train, "test": blind, "raw": train})
    whole.save_to_disk(tmp_path / "kept")
    for given in (whole, f"hf:{tmp_path / 'kept'}", tmp_path / "kept"):
        found = read(given)
        assert len(found.valid) == 30
        assert len(found.test) == 4  # a test set without labels judges nothing
        assert found.made
        assert found.notes[0].startswith("the parts raw of ")
        assert "1 of 1 rows" in found.notes[1]
        assert "have no text or label and were left out" in found.notes[1]


# --- shapes --------------------------------------------------------------------------------------


def only(row: dict[str, Any], target: str | None = None) -> Any:
    return read({"train": [row], "valid": [row], "test": [row]}, target=target)


@pytest.mark.parametrize(
    ("row", "made"),
    [
        ({"content": "a", "id": 3}, {"text": "a"}),
        ({"prompt": "a", "response": "b", "text": "ab"}, {"prompt": "a", "response": "b"}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "response": "b"}),
        ({"question": "a", "answer": "b"}, {"prompt": "a", "response": "b"}),
        ({"instruction": "a", "output": "b"}, {"prompt": "a", "response": "b"}),
        ({"output": "b", "instruction": "a", "input": ""}, {"prompt": "a", "response": "b"}),
        (
            {"instruction": "a", "input": "c", "output": "b"},
            {"prompt": "a\n\nc", "response": "b"},
        ),
        (
            {"messages": [{"role": "user", "content": "a", "name": "x"}], "prompt": "a"},
            {"messages": [{"role": "user", "content": "a"}]},
        ),
    ],
)
def test_shapes_of_rows(row: dict[str, Any], made: dict[str, Any]) -> None:
    assert only(row).train == [made]


def test_other_names_of_columns_are_said() -> None:
    found = only({"instruction": "a", "input": "", "output": "b"})
    assert found.notes == (
        "the prompt of a row is its instruction and input, the response its output",
    )


def test_labels_get_numbers_in_every_set() -> None:
    rows = [{"text": f"{i}", "label": "no" if i % 3 else "yes", "n": i % 2} for i in range(30)]
    found = read({"train": rows, "test": rows[3:4]})
    assert found.names == ("no", "yes")
    assert found.test == [{"text": "3", "label": 1}]
    assert sum(row["label"] for row in found.valid) == 1  # each class in its share
    by = read(rows, target="n")
    assert by.names == ("0", "1")
    assert all(int(row["text"]) % 2 == row["label"] for row in by.train)


def test_rows_without_text_are_left_out() -> None:
    found = read([*WORDS, "", "  \n"])
    assert found.notes[0] == "2 of 32 rows of the data have no text and were left out"
    pairs = [{"prompt": "a", "response": None}] + [{"prompt": "a", "response": "b"}] * 9
    assert read(pairs).notes[0].startswith("1 of 10 rows of the data have no prompt or response")
    assert 0 not in read(pairs).cut["train"]


# --- refusals ------------------------------------------------------------------------------------

KNOWN = "give text .or content., prompt and response"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"data": [{"words": "a", "n": 1}]}, rf"known \(there are: words, n\); {KNOWN}"),
        ({"data": [{"text": "a"}], "target": "kind"}, r"no column 'kind' for the target \(there"),
        ({"data": [{"words": "a", "n": 1}], "target": "n"}, "no column of texts beside 'n'"),
        ({"data": [{"text": 3}]}, "row 0 of the data: column 'text' holds a int; it must be text"),
        ({"data": ["a", {"text": "b"}]}, "sample 1 of the data is a dict; give texts only"),
        ({"data": [3]}, "sample 0 of the data is a int"),
        ({"data": 3}, "the data is a int; give a folder"),
        ({"data": []}, r"no columns that are known \(there are none\)"),
        ({"data": ["", " "]}, "the data has no row with text in it"),
        ({"data": ["a"]}, "1 row is too few to hold any out as 'valid'"),
        ({"data": ["a", "b"]}, "2 rows are too few to hold any out as 'valid'"),
        ({"data": {"test": ["a"], "more": ["b"]}}, r"no part 'train' \(its parts: test, more\)"),
        ({"data": {"train": ["a"], "test": ["b"]}, "test": ["c"]}, "leave one out"),
        ({"data": ["a"] * 9, "test": [{"words": "b"}]}, "no column 'text', which the training"),
        ({"data": [{"messages": "hi"}]}, "messages must be a list of dicts with a role and a cont"),
        ({"data": [{"messages": [{"role": "user"}]}]}, "row 0 of the data: messages must be"),
        (
            {
                "data": [{"text": "a", "label": i % 2} for i in range(9)],
                "test": [{"text": "a", "label": 2}],
            },
            "has the class '2' in sample 0, which the training data lack",
        ),
        ({"data": "sklearn:digits"}, "which holds no texts"),
        ({"data": "nowhere"}, "'nowhere', which is not there"),
    ],
)
def test_refusals(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read(**given)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text"', "a.jsonl, line 2 is no JSON"),
        ("a.jsonl", "3\n", "holds something else than rows"),
        ("a.json", '{"text": "a"}\n{"text": "b"}', "call it .jsonl if a row is a line"),
        ("a.json", '{"text": "a"}', "holds a dict; give a list of rows"),
        ("a.parquet", "no", "cannot be read as parquet"),
        ("test.txt", "a\n\nb", "has a set 'test' and no files or folder called train"),
        ("a.md", "a", "holds no texts but a.md"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read(str(tmp_path))


def test_what_is_no_utf8_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"a\.txt cannot be read as text in UTF-8"):
        read(tmp_path / "a.txt")


def test_a_data_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    asked: list[Any] = []

    def load(name: str, configuration: str | None) -> Any:
        asked.append((name, configuration, datasets.config.HF_HUB_OFFLINE))
        raise ConnectionError("no way there.\nmore")

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("socket.create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    before = datasets.config.HF_HUB_OFFLINE
    why = "there is no connection, and no copy here"
    with pytest.raises(Missing, match=rf"hf:some/set:part cannot be had \({why}\); give a"):
        read("hf:some/set:part")
    assert asked == [("some/set", "part", True)]  # else its client tries for half a minute
    assert before == datasets.config.HF_HUB_OFFLINE
