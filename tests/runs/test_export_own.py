"""A student of a user's own file: the lines of its README run beside that file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck.core.sources.own import value_of
from limbeck.runs.export import export

pytestmark = pytest.mark.xdist_group("export_own")

NETS = """
from torch import nn


class Student(nn.Module):
    def __init__(self, classes: int, width: int = 4) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(3, width), nn.Linear(width, classes)

    def forward(self, x):
        return {"hidden": self.first(x), "logits": self.out(self.first(x).relu())}
"""
TABLE = {"kind": "table", "columns": ["a", "b", "c"], "mean": [1.0, 2.0, 3.0], "std": [0.5] * 3}


@pytest.fixture
def kind(tmp_path: Path) -> type:
    (tmp_path / "nets.py").write_text(NETS)
    return value_of(f"{tmp_path}/nets.py:Student")


def lines_of(folder: Path) -> str:
    lines = (folder / "README.txt").read_text().splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)


def test_the_lines_standardise_and_run_beside_the_file(tmp_path: Path, kind: type) -> None:
    torch.manual_seed(1)
    model, out = kind(classes=2), tmp_path / "out"
    about = {"inputs": TABLE, "names": ["no", "yes"]}
    x = torch.randn(4, 3)
    export(model, x, to="safetensors", out=out, about=about)
    text = (out / "README.txt").read_text()
    assert "is a nets.py:Student," in text
    assert "limbeck_own" not in text + json.dumps(json.loads((out / "student.json").read_text()))
    (out / "nets.py").write_text(NETS)
    code = f"import sys\nsys.modules['limbeck'] = None\n{lines_of(out)}"
    code += "\nprint(load(Student(2))(torch.ones(1, 3))['logits'].tolist())"
    run = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said, logits = run.stdout.splitlines()
    with torch.no_grad():
        best = model(x[:1])["logits"].argmax(-1)
        assert torch.allclose(torch.tensor(json.loads(logits)), model(torch.ones(1, 3))["logits"])
    assert said == str([about["names"][i] for i in best])
    assert f"argmax(-1)])  # {said}\n" in text, "the lines say what they print"
    raw = json.loads((out / "sample.json").read_text())["x"]  # as it was before it was scaled
    scale = torch.tensor(TABLE["std"]), torch.tensor(TABLE["mean"])
    torch.testing.assert_close(torch.tensor(raw), x[:1] * scale[0] + scale[1])


@pytest.mark.parametrize("how", ["width", "other"])
def test_a_student_made_in_another_way_is_left_to_its_reader(
    tmp_path: Path, kind: type, how: str
) -> None:
    model = (
        kind(classes=2, width=6) if how == "width" else torch.nn.Sequential(torch.nn.Linear(3, 2))
    )
    export(
        model, torch.randn(4, 3), to="safetensors", out=tmp_path / "out", about={"inputs": TABLE}
    )
    code = lines_of(tmp_path / "out")
    assert f"# use(load({type(model).__name__}(...)))" in code
    code = code.replace("# use(load", "# (load") + "\nstudent = load(given)\nuse(student)"
    space = {"given": model, "open": lambda name, **how: (tmp_path / "out" / name).open(**how)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "out")
        exec(code, space)
    assert "mean" in code
    assert "std" in code
