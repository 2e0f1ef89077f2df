"""Models, tables and splits that are named in words."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from limbeck.core import checkpoints
from limbeck.core.sources import labels, models, tables
from limbeck.core.sources.specs import data_of, model_of
from limbeck.core.sources.split import hold_out, split
from limbeck.errors import Missing, UsageError

pytestmark = pytest.mark.xdist_group("sources")

NETS = """
from torch import nn
import neighbour

ready = nn.Linear(4, 3)
text = "no model"

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.head = nn.Linear(4, classes)
    def forward(self, x):
        return self.head(x)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight

def plain():
    return nn.Linear(4, 3)

def must(classes):
    return nn.Linear(4, classes)

def wide(width, classes=2):
    return nn.Linear(4, classes)

def none():
    return 3

def fails():
    return neighbour.table["x"]
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "neighbour.py").write_text("table = {}\n")
    return f"{tmp_path}/nets.py"


def made(words: str, classes: int | None = None) -> models.Made:
    return models.from_file(model_of(words, "student"), classes)


def said(words: str, classes: int | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        made(words, classes).make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("http://h/p?v=1&api_key=s3cret", r"on h has the field 'api_key', and a run's files .*KEY"),
        ("https://h/p?TOKEN=s3cret", "the field 'TOKEN'"),
        ("http://h/p?v=1;authorization=s3cret", "the field 'authorization'"),
        ("http://h/p?client_secret=s3cret", "the field 'client_secret'"),
        ("http://h/p?password=s3cret", "the field 'password'"),
        ("http://me:s3cret@h/p", "holds a name or password"),
        ("http://s3cret@h:x/p", "'h:x/p' is no address"),
        ("http://", "is no address of a server"),
        ("http://h/a b", "is no address of a server"),
        ("http://h/p\u00e9", "is no address of a server"),
        (
            "127.0.0.1:8903/predict",
            r"if a server is meant, write http://127\.0\.0\.1:8903/predict$",
        ),
        ("localhost:8903", "write http://localhost:8903$"),
    ],
)
def test_addresses_that_cannot_be_asked_or_tell_a_secret(words: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        model_of(words, "teacher")
    assert "s3cret" not in str(caught.value)


def test_an_address_keeps_what_is_no_secret() -> None:
    for words in ("http://h/p", "https://h:8000/key/p?version=2", "HTTP://[::1]:80/p"):
        assert (model_of(words, "teacher").kind, model_of(words, "teacher").name) == ("url", words)
    with pytest.raises(Missing, match="the choices are: timm, torchvision, hf"):
        model_of("c:x", "teacher")


# -- models ----------------------------------------------------------------------------------------


def test_a_module_is_trained_as_it_stands_and_copied(nets: str) -> None:
    one = made(f"{nets}:ready", 10)
    a, b = one.make(), one.make()
    assert (one.trained, one.name, one.usual) == (True, "ready", None)
    assert a is not b
    assert torch.equal(a.weight, b.weight)
    with torch.no_grad():
        a.weight.zero_()
    assert b.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "trained", "gives"), [("Net", False, 7), ("plain", True, 3), ("must", True, 7)]
)
def test_functions_are_trained_and_classes_are_not(
    nets: str, name: str, trained: bool, gives: int
) -> None:
    one = made(f"{nets}:{name}", 7)
    assert one.trained is trained
    assert one.make()(torch.zeros(1, 4)).shape == (1, gives)


def test_the_usual_model_is_the_one_without_our_number_of_classes(nets: str) -> None:
    usual = made(f"{nets}:Net", 7).usual
    assert usual is not None
    assert usual()(torch.zeros(1, 4)).shape == (1, 3)
    assert made(f"{nets}:must", 7).usual is None
    assert made(f"{nets}:Net").make()(torch.zeros(1, 4)).shape == (1, 3)


def test_mistakes_in_a_file_are_one_sentence(nets: str, tmp_path: Path) -> None:
    line = NETS.splitlines().index('    return neighbour.table["x"]') + 1
    assert said(f"{nets}:fails") == f"{nets}, line {line}: KeyError: 'x'"
    assert "has no 'Nett'; did you mean 'Net'" in said(f"{nets}:Nett")
    assert "is a str; name a torch module" in said(f"{nets}:text")
    assert "gave a int; it must give a torch module" in said(f"{nets}:none")
    assert "needs the argument 'width'" in said(f"{nets}:wide", 2)
    assert "needs the number of classes" in said(f"{nets}:must")
    (tmp_path / "bad.py").write_text("a = 1\nb = (\n")
    assert f"{tmp_path}/bad.py, line 2: " in said(f"{tmp_path}/bad.py:a")
    (tmp_path / "lacks.py").write_text("\nimport no_such_package\n")
    assert "lacks.py, line 2: ModuleNotFoundError" in said(f"{tmp_path}/lacks.py:a")


def test_a_file_is_executed_again_only_when_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "once.py"
    text = "from torch import nn\nnet = nn.Linear({n}, 2)\n"
    file.write_text(text.format(n=3))
    a, b = (models.own.value_of(f"{file}:net") for _ in range(2))
    assert a is b
    file.write_text(text.format(n=5))
    assert models.own.value_of(f"{file}:net").in_features == 5


# -- weights ---------------------------------------------------------------------------------------


def test_weights_of_others_and_our_own_are_loaded(nets: str, tmp_path: Path) -> None:
    source = made(f"{nets}:Net", 3).make()
    save_file(source.state_dict(), tmp_path / "theirs.safetensors")
    checkpoints.save(tmp_path / "ours.safetensors", checkpoints.of_module(source))
    for name in ("theirs", "ours"):
        one = made(f"{nets}:Net@{tmp_path}/{name}.safetensors", 3)
        assert one.trained
        assert one.usual is None
        assert torch.equal(one.make().head.weight, source.head.weight)


def test_tied_weights_may_stand_under_one_name(nets: str, tmp_path: Path) -> None:
    source = made(f"{nets}:Tied").make()
    state = {k: v for k, v in source.state_dict().items() if k != "b.weight"}
    assert len(state) == 3
    save_file(state, tmp_path / "tied.safetensors")
    checkpoints.save(tmp_path / "ours.safetensors", checkpoints.of_module(source))
    for name in ("tied", "ours"):
        copy = made(f"{nets}:Tied@{tmp_path}/{name}.safetensors").make()
        assert torch.equal(copy.b.weight, source.a.weight)


def test_weights_that_do_not_fit_are_named(nets: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    words = f"{nets}:Net@{file}"
    save_file({"head.weight": torch.zeros(9, 4), "head.bias": torch.zeros(9)}, file)
    assert "'head.bias' is (9,) in the file and (3,) in the model" in said(words)
    with pytest.raises(UsageError, match=r"has 9 classes, the data have 3; .* leave '@w\.safetens"):
        models.from_file(model_of(words, "teacher"), 3).make()
    with pytest.raises(UsageError, match=r"'head\.bias' is \(9,\) in the file"):  # not of a head
        models.load_weights(models.from_file(model_of(f"{nets}:Net", "teacher"), 3).make(), file, 4)
    save_file({"head.weight": torch.zeros(3, 4)}, file)
    assert "the model has 'head.bias', which the file lacks" in said(words)
    whole = {"head.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)}
    save_file({**whole, "more": torch.zeros(1)}, file)
    assert "the file has 'more', which the model lacks" in said(words)
    file.write_bytes(b"not at all")
    assert "cannot be read as safetensors" in said(words)


def test_a_run_gives_its_trained_student(nets: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"request": {"own": {"student": f"{nets}:Net"}}}))
    words = model_of(str(folder), "teacher")
    assert words.kind == "run"
    with pytest.raises(Missing, match="limbeck resume"):
        models.from_run(words)
    student = made(f"{nets}:Net", 5).make()
    checkpoints.save(folder / "student.safetensors", checkpoints.of_module(student))
    (folder / "appraisal.json").write_text(json.dumps({"classes": list("abcde")}))
    one = models.from_run(words)
    assert (one.trained, one.name) == (True, "run")
    assert torch.equal(one.make().head.weight, student.head.weight)

    asked = []

    def build(text: str, classes: int | None) -> nn.Module:
        asked.append((text, classes))
        return made(text, classes).make()

    assert torch.equal(models.from_run(words, build).make().head.bias, student.head.bias)
    assert asked == [(f"{nets}:Net", 5)]
    (folder / "run.json").write_text(json.dumps({"request": {"own": {"student": "timm:vit"}}}))
    with pytest.raises(UsageError, match="'timm:vit', which the room 'plain' does not make"):
        models.from_run(words).make()
    (folder / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="was not begun with --student"):
        models.from_run(words)


# -- splits ----------------------------------------------------------------------------------------


def test_a_split_is_by_class_complete_and_always_the_same() -> None:
    y = torch.arange(1000) % 7
    y[:3], y[3:5], y[5] = 7, 8, 9  # classes of three, two and one
    parts = split(y)
    assert torch.cat(parts).sort().values.tolist() == list(range(1000))
    for a, b in zip(parts, split(y.clone()), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, a.sort().values)
    for label, n in enumerate(y.bincount().tolist()):
        counts = [int((y[p] == label).sum()) for p in parts]
        if n > 3:
            assert counts[1:] == [round(0.15 * n)] * 2, label
    assert [[int((y[p] == c).sum()) for p in parts] for c in (7, 8, 9)] == [
        [1, 1, 1], [1, 0, 1], [1, 0, 0],
    ]  # fmt: skip


def test_a_split_is_drawn_and_does_not_take_the_first() -> None:
    valid = split(torch.zeros(1000, dtype=torch.long))[1]
    assert len(valid) == 150
    assert 400 < valid.double().mean() < 600


def test_strange_shares_leave_no_part_empty() -> None:
    y = torch.zeros(4, dtype=torch.long)
    assert [len(p) for p in split(y, (0.1, 0.8, 0.1))] == [1, 2, 1]


def test_holding_out() -> None:
    y = torch.arange(100) % 2
    kept, out = hold_out(y, 0.2)
    assert y[out].bincount().tolist() == [10, 10]
    assert set(kept.tolist()) | set(out.tolist()) == set(range(100))
    assert len(kept) + len(out) == 100
    assert [len(p) for p in hold_out(torch.tensor([0, 0, 1]), 0.1)] == [2, 1]


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "numbers", "names"),
    [
        (["b", "a", "b"] * 2, [1, 0, 1] * 2, ["a", "b"]),
        (["10", "9", "10.0"] * 2, [1, 0, 1] * 2, ["9", "10"]),
        (torch.tensor([3, 0, 1, 3]), [3, 0, 1, 3], ["0", "1", "2", "3"]),
        (np.array([-1, 1, 1, -1]), [0, 1, 1, 0], ["-1", "1"]),
        (np.array([1000.0, 2000.0, 1000.0]), [0, 1, 0], ["1000", "2000"]),
        (np.array([True, False, True]), [1, 0, 1], ["0", "1"]),
        (np.array([0.5, 1.5, 0.5]), [0, 1, 0], ["0.5", "1.5"]),
    ],
)
def test_labels_become_numbers(given: object, numbers: list[int], names: list[str]) -> None:
    y, found = labels.numbered(given, "it")
    assert (y.dtype, y.tolist(), found) == (torch.int64, numbers, names)


def test_later_labels_are_numbered_like_the_first() -> None:
    assert labels.numbered(["c", "b"], "test", ["a", "b", "c"])[0].tolist() == [2, 1]
    assert labels.numbered(torch.tensor([2, 2, 2]), "t", ["0", "1", "2"])[0].tolist() == [2] * 3
    with pytest.raises(UsageError, match="class 'd' in sample 0, which the training data lack; th"):
        labels.numbered(["d"], "test", ["a", "b"])


def test_labels_that_are_no_classes_are_refused() -> None:
    for given in (np.linspace(0, 1, 50), np.arange(60) * 3, [f"name {i}" for i in range(50)]):
        with pytest.raises(UsageError, match="which are no classes"):
            labels.numbered(given, "it")
    assert len(labels.numbered(np.arange(1000) % 100, "it")[1]) == 100
    with pytest.raises(UsageError, match=r"of shape \(4, 2\)"):
        labels.numbered(torch.zeros(4, 2), "it")
    with pytest.raises(UsageError, match=r"lack a value .* sample 1"):
        labels.numbered(np.array([0.0, np.nan]), "it")


# -- tables ----------------------------------------------------------------------------------------

ROWS = [("a", "kind", "b", "out")] + [
    (str(i), "red" if i % 3 else "blue", f"{i / 2}", "yes" if i % 2 else "no") for i in range(12)
]


def write(file: Path, rows: list[tuple[str, ...]], delimiter: str = ",") -> str:
    with file.open("w", newline="", encoding="utf-8-sig") as opened:
        csv.writer(opened, delimiter=delimiter).writerows(rows)
    return str(file)


def load(words: str, target: str | None = None, like: tables.Loaded | None = None) -> tables.Loaded:
    return tables.load(data_of(words), target, like)


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t"), ("e.csv", ";")])
def test_a_table_of_numbers_and_text(tmp_path: Path, name: str, delimiter: str) -> None:
    found = load(write(tmp_path / name, ROWS, delimiter))
    assert found.columns == ["a", "kind=blue", "kind=red", "b"]
    assert found.names == ["no", "yes"]
    assert found.y.tolist() == [i % 2 for i in range(12)]
    expected = [[i, float(i % 3 == 0), float(i % 3 > 0), i / 2] for i in range(12)]
    assert found.x.dtype == torch.float32
    assert found.x.tolist() == expected
    assert "column 'out'" in found.notes[0]
    assert "kind" in found.notes[1]


def test_the_target_is_named_or_called_so_or_last(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", ROWS)
    assert load(file, "kind").names == ["blue", "red"]
    rows = [("Label", *ROWS[0][:3])] + [(r[3], *r[:3]) for r in ROWS[1:]]
    assert load(write(tmp_path / "first.csv", rows)).names == ["no", "yes"]
    with pytest.raises(Missing, match="no column 'knd' for the target; did you mean 'kind'"):
        load(file, "knd")
    wide = [tuple(f"c{i}" for i in range(40)), *[tuple("1" * 40)] * 2]
    with pytest.raises(Missing, match="the choices are: c39, c0, c1"):  # mostly it is the last
        load(write(tmp_path / "wide.csv", wide), "zzzz")


def test_a_test_table_is_read_like_the_first(tmp_path: Path) -> None:
    first = load(write(tmp_path / "t.csv", ROWS))
    turned = [tuple(reversed(row)) for row in (ROWS[0], *ROWS[2:4])]  # one 'red', no 'blue'
    again = load(write(tmp_path / "u.csv", turned), "out", first)
    assert again.columns == first.columns
    assert torch.equal(again.x, first.x[1:3])
    assert torch.equal(again.y, first.y[1:3])
    odd = [ROWS[0], ("1", "green", "2", "no")]
    with pytest.raises(UsageError, match="line 2: column 'kind' holds 'green', which the train"):
        load(write(tmp_path / "v.csv", odd), None, first)
    odd = [ROWS[0], ROWS[1], ("1", "red", "2", "maybe")]
    with pytest.raises(UsageError, match=r"'out'.* has the class 'maybe' in line 3, which the"):
        load(write(tmp_path / "x.csv", odd), None, first)
    with pytest.raises(UsageError, match="no column 'b', which the training data have"):
        load(write(tmp_path / "w.csv", [(r[0], r[1], r[3]) for r in ROWS]), None, first)


def changed(row: int, column: int, cell: str) -> list[tuple[str, ...]]:
    rows = [list(r) for r in ROWS]
    rows[row][column] = cell
    return [tuple(r) for r in rows]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (changed(4, 2, ""), "line 5: column 'b' has no value"),
        (changed(4, 1, "?"), "line 5: column 'kind' has no value"),
        (changed(4, 3, "NA"), "line 5: column 'out' has no value"),
        (changed(4, 2, "four"), "line 5: column 'b' holds 'four' among numbers"),
        (changed(4, 2, "-1e39"), "line 5: column 'b' holds '-1e39', more than a float32 can"),
        (changed(4, 2, "inf"), "line 5: column 'b' holds 'inf' among numbers"),
        (changed(0, 1, "a"), "two columns 'a'"),
        (ROWS[:1], "no rows under a header"),
        ([("1", "2"), ("3", "4")], "holds numbers only"),
        ([*ROWS, ("1", "2")], "line 14 has 2 cells, but the header names 4"),
        (
            [("t", "y"), *[(f"text {i}", str(i % 2)) for i in range(30)]],
            "'t' is text ('text 0') with 30 different values",
        ),
        ([("y",), ("a",), ("b",), ("a",)], "no column beside the target"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, rows: list[tuple[str, ...]], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path / "t.csv", rows))
    assert told in str(caught.value)


def test_parquet_is_the_same_table(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    from pyarrow import parquet

    columns = list(zip(*ROWS[1:], strict=True))
    table = {
        "a": [int(v) for v in columns[0]],
        "kind": list(columns[1]),
        "b": [float(v) for v in columns[2]],
        "out": list(columns[3]),
    }
    parquet.write_table(arrow.table(table), tmp_path / "t.parquet")
    a, b = load(f"{tmp_path}/t.parquet"), load(write(tmp_path / "t.csv", ROWS))
    assert torch.equal(a.x, b.x)
    assert (a.columns, a.names, a.y.tolist()) == (b.columns, b.names, b.y.tolist())
    table["b"][3] = None
    parquet.write_table(arrow.table(table), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="row 4: column 'b' has no value"):
        load(f"{tmp_path}/t.parquet")


def test_arrays_of_files(tmp_path: Path) -> None:
    x, y = np.arange(24, dtype=np.float64).reshape(6, 2, 2), np.arange(6) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        found = load(f"{tmp_path}/{name}")
        assert found.x.dtype == torch.float32
        assert found.x.tolist() == x.tolist()
        assert (found.y.tolist(), found.names, found.columns) == (y.tolist(), list("012"), [])
    np.savez(tmp_path / "b.npz", images=x, y=y)
    with pytest.raises(Missing, match="no array 'x'; it holds images, y"):
        load(f"{tmp_path}/b.npz")
    with pytest.raises(UsageError, match="has no columns"):
        load(f"{tmp_path}/a.npz", "y")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(UsageError, match="nothing is unpickled"):
        load(f"{tmp_path}/p.npz")


def test_tables_of_sklearn() -> None:
    found = load("sklearn:iris")
    assert found.x.shape == (150, 4)
    assert found.names == ["setosa", "versicolor", "virginica"]
    assert found.columns[0] == "sepal length (cm)"
    with pytest.raises(Missing, match="did you mean 'iris'"):
        load("sklearn:irs")


DATA = """
import torch
x, y = torch.randn(12, 3), torch.arange(12) % 3
pair = (x, y)
def make():
    return {"train": (x[:6], y[:6]), "valid": (x[6:9], y[6:9]), "test": (x[9:], y[9:])}
def named():
    return {"x": x.numpy(), "y": ["a", "b", "c"] * 4}
tokens = (torch.arange(12).view(12, 1), y)
dataset = torch.utils.data.TensorDataset(x, y)
def other():
    return 3
def parts():
    return {"train": pair, "eval": pair}
uneven = (x, y[:5])
"""


def test_data_of_a_users_file(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(DATA)
    words = f"{tmp_path}/data.py"
    pair, split_, named = (load(f"{words}:{n}") for n in ("pair", "make", "named"))
    assert torch.equal(pair.x, split_.x)
    assert torch.equal(pair.x, named.x)
    assert torch.equal(pair.x, load(f"{words}:dataset").x)
    assert named.names == ["a", "b", "c"]
    assert {k: v.tolist() for k, v in split_.rows.items()} == {
        "train": [0, 1, 2, 3, 4, 5], "valid": [6, 7, 8], "test": [9, 10, 11],
    }  # fmt: skip
    assert load(f"{words}:tokens").x.dtype == torch.int64
    for name, told in (
        ("other", "is a int; give"),
        ("parts", "a part 'eval'; did you mean 'valid'"),
        ("uneven", "12 inputs and 5 labels"),
    ):
        with pytest.raises(UsageError, match=told):
            load(f"{words}:{name}")
