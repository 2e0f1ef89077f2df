"""`limbeck show --modules`."""

import json
from pathlib import Path

import pytest
import torch

from limbeck import cli
from limbeck.core import checkpoints

pytestmark = pytest.mark.xdist_group("cli_modules")

NETS = """
from torch import nn

def net(classes=4):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(classes))

class Words(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.table = nn.Embedding(9, 5)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        return self.head(self.table(x).mean(1))
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return f"{tmp_path}/nets.py"


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    assert cli.main(["show", "--modules", *words]) == 0
    return [line.split("  ") for line in capsys.readouterr().out.splitlines()]


def cells(line: list[str]) -> list[str]:
    return [cell.strip() for cell in line if cell.strip()]


def test_the_tree_of_a_model(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = list(map(cells, lines(capsys, f"{nets}:net", "--input", "3,6,6", "--classes", "7")))
    assert told == [
        ["net, shown a sample of 3 x 6 x 6"],
        [],
        ["PATH", "KIND", "GIVES", "PARAMETERS"],
        ["(all)", "Sequential", "(B, 7)", "1,127"],  # 3 * 8 * 9 + 8, and 128 * 7 + 7
        ["0", "Conv2d", "(B, 8, 4, 4)", "224"],
        ["1", "Flatten", "(B, 128)", "0"],
        ["2", "Linear", "(B, 7)", "903"],
    ]


def test_without_an_input_there_are_no_shapes(
    nets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = list(map(cells, lines(capsys, f"{nets}:Words")))
    assert told[1] == ["(all)", "Words", "69"]  # 9 * 5, and 5 * 4 + 4
    assert told[-1][0].startswith("say --input SHAPE")
    told = list(map(cells, lines(capsys, f"{nets}:Words", "--input", "6")))
    assert told[4] == ["table", "Embedding", "(B, 6, 5)", "45"]


def test_as_json(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "--modules", f"{nets}:Words", "--input=6", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[-1] == {"path": "head", "kind": "Linear", "shape": "(B, 4)", "parameters": 24}


def test_the_student_of_a_run(
    nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"request": {"own": {"student": f"{nets}:Words"}}}))
    state = {
        "table.weight": torch.zeros(9, 5),
        "head.weight": torch.zeros(4, 5),
        "head.bias": torch.zeros(4),
    }
    checkpoints.save(folder / "student.safetensors", state)
    assert cells(lines(capsys, str(folder))[1]) == ["(all)", "Words", "69"]
    told = json.loads((folder / "run.json").read_text())
    inputs = {"kind": "tensors", "shape": [6]}
    (folder / "run.json").write_text(json.dumps({**told, "about": {"inputs": inputs}}))
    first, _, _, _, table, *_ = map(cells, lines(capsys, str(folder)))
    assert first == ["run, shown a sample of 6, as in its run"]
    assert table == ["table", "Embedding", "(B, 6, 5)", "45"]


def test_a_library_says_what_its_models_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    timm = pytest.importorskip("timm", reason="needs timm")
    (first,), *rest = map(cells, lines(capsys, "timm:resnet10t", "--classes", "5"))
    told = {c[0]: c for c in rest if c}
    size = timm.get_pretrained_cfg("resnet10t").input_size[-1]
    assert first.startswith(f"resnet10t, shown a sample of 3 x {size} x {size}, its own size")
    assert told["(all)"][2] == "(B, 5)"
    assert told["layer4"][2] == f"(B, 512, {-(-size // 32)}, {-(-size // 32)})"
    rest = list(map(cells, lines(capsys, "timm:resnet10t", "--input", "3,64,64")))
    assert rest[0] == ["resnet10t, shown a sample of 3 x 64 x 64"]
    told = {c[0]: c for c in rest if c}
    assert told["(all)"][2] == "(B, 1000)"
    assert told["layer4"][2] == "(B, 512, 2, 2)"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["kd", "--modules", "{nets}:net"], "both 'kd' and --modules"),
        (["--modules", "{nets}:net", "--input", "3,a"], "--input is '3,a'; give the shape"),
        (["--modules", "{nets}:net", "--input", "0"], "--input is '0'; give the shape"),
        (["--modules", "{nets}:net", "--classes", "0"], "--classes is 0"),
        (["--modules", "{nets}:net", "--input", "4,6,6"], "does not take a batch (2, 4, 6, 6)"),
        (["--modules", "{nets}:nett"], "has no 'nett'; did you mean 'net'"),
        ([], "name a method by its KEY, or a model with --modules"),
    ],
)
def test_mistakes_are_sentences(
    nets: str, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert cli.main(["show", *(w.format(nets=nets) for w in words)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
