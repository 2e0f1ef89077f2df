"""What a run on pictures lists of its split, and labels that begin at 1."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import limbeck
from limbeck.core.task import Budget

pytestmark = pytest.mark.xdist_group("pictures_listed")
for package in ("PIL", "torchvision"):
    if find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)

X = torch.randint(0, 256, (30, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def fill(root: Path, each: int) -> Path:
    from PIL import Image

    for label, name in enumerate(("ape", "bee", "cow")):
        (root / name / "more").mkdir(parents=True)
        for i in range(each):
            picture = np.full((4, 4), 80 * label + i, np.uint8)
            Image.fromarray(picture).save(root / name / ("more" if i % 2 else "") / f"{i}.png")
    return root


def test_a_folder_s_pictures_are_listed_by_their_paths(tmp_path: Path) -> None:
    root = fill(tmp_path / "zoo", 10)
    made = limbeck.vision.task(None, net, root, budget=Budget(steps=1, batch=4))
    assert any("lists them in split.json" in note for note in made.notes)
    limbeck.run("ban", made, out=tmp_path / "run")
    listed = json.loads((tmp_path / "run/split.json").read_text())
    there = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    assert sorted(path for paths in listed.values() for path in paths) == there
    from PIL import Image

    for name, paths in listed.items():
        x, y = made.set(name)
        shown = [int(np.array(Image.open(root / path))[0, 0]) for path in paths]
        assert x[:, 0, 0, 0].tolist() == shown
        assert [("ape", "bee", "cow")[k] for k in y] == [path.partition("/")[0] for path in paths]


def test_with_a_test_set_its_pictures_are_not_listed(tmp_path: Path) -> None:
    fill(tmp_path / "zoo/train", 8)
    fill(tmp_path / "zoo/test", 2)
    made = limbeck.vision.task(None, net, tmp_path / "zoo")
    assert sorted(made.split) == ["train", "valid"]
    assert all(path.startswith("train/") for paths in made.split.values() for path in paths)


def test_tensors_are_listed_by_their_numbers() -> None:
    made = limbeck.vision.task(None, net, (X, torch.arange(30) % 3))
    assert sorted(i for rows in made.split.values() for i in rows) == list(range(30))
    assert torch.equal(made.test[0], X[made.split["test"]])


def test_rooms_are_there_when_they_are_asked_for() -> None:
    ask = (
        "import sys, limbeck\n"
        "assert {'vision', 'language', 'task'} - set(dir(limbeck)) == {'task'}\n"
        "assert 'task' in dir(limbeck.vision) and 'torch' not in sys.modules\n"
        "print(limbeck.language.__name__, limbeck.vision.task.__name__)"
    )
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert said.stdout.split() == ["limbeck.language", "task"], said.stderr
    with pytest.raises(AttributeError, match="no attribute 'visio'"):
        limbeck.visio  # noqa: B018


def test_labels_may_begin_at_one() -> None:
    y = torch.arange(30) % 3
    one, zero = (limbeck.vision.task(None, net, (X, y + low)) for low in (1, 0))
    assert (one.classes, one.about["names"]) == (3, ["1", "2", "3"])
    assert zero.about["names"] == ["0", "1", "2"]
    assert torch.equal(one.train[1], zero.train[1])
