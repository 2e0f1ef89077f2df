"""Labels of any origin as the same classes, and the list of what was held out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import limbeck
from limbeck.core import checkpoints, plain
from limbeck.core.sources.models import load_weights
from limbeck.core.task import Budget
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("sets_listed")

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
STEPS = Budget(steps=2, batch=8)


def files(folder: Path, y: np.ndarray) -> tuple[str, str]:
    np.savez(folder / "a.npz", x=X.numpy(), y=y)
    with (folder / "a.csv").open("w", newline="") as file:
        rows = [[*map(str, x), str(label)] for x, label in zip(X.tolist(), y.tolist(), strict=True)]
        csv.writer(file).writerows([["a", "b", "c", "d", "y"], *rows])
    return str(folder / "a.npz"), str(folder / "a.csv")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 2, 3], ["1", "2", "3"]),
        ([0, 1, 2], ["0", "1", "2"]),
        ([0, 1, 3], ["0", "1", "2", "3"]),
        ([0, 5, 9], ["0", "5", "9"]),
        ([-1, 0, 1], ["-1", "0", "1"]),
        ([10, 100, 2], ["2", "10", "100"]),
    ],
)
def test_a_table_s_labels_are_those_of_an_array(
    tmp_path: Path, labels: list[int], names: list[str]
) -> None:
    y = np.array(labels)[np.arange(60) % 3]
    for words in files(tmp_path, y):
        made = plain.task(None, lambda: nn.Linear(4, len(names)), words)
        assert made.about["names"] == names
        assert made.classes == len(names)
        said = [note for note in made.notes if "no sample is of class 2" in note]
        assert len(said) == (labels == [0, 1, 3])
        numbers = [made.split[n] for n in ("train", "valid", "test")]
        for rows, part in zip(numbers, (made.train, made.valid, made.test), strict=True):
            assert [names[i] for i in part[1].tolist()] == [str(y[r]) for r in rows]
            assert torch.allclose(part[0], X[rows])
        assert sorted(i for rows in numbers for i in rows) == list(range(60))


def test_a_run_lists_what_was_held_out(tmp_path: Path) -> None:
    words = files(tmp_path, np.arange(60) % 3)[0]
    made = plain.task(None, lambda: nn.Linear(4, 3), words, budget=STEPS)
    assert any(note.endswith("the run's folder lists them in split.json") for note in made.notes)
    limbeck.run("ban", made, out=tmp_path / "run")
    text = (tmp_path / "run/split.json").read_text()
    assert json.loads(text) == made.split
    assert "\n" not in text
    assert "rows" not in json.dumps(json.loads((tmp_path / "run/run.json").read_text())["about"])


def test_only_what_was_cut_is_listed(tmp_path: Path) -> None:
    y = torch.arange(60) % 3
    parts = {"test": (X[:20], y[:20]), "train": (X[20:], y[20:])}
    made = plain.task(None, lambda: nn.Linear(4, 3), parts, budget=STEPS)
    assert sorted(made.split) == ["train", "valid"]
    assert torch.equal(made.valid[0], X[20:][list(made.split["valid"])])  # as train was given
    whole = {"valid": (X[:20], y[:20]), **parts}
    made = plain.task(None, lambda: nn.Linear(4, 3), whole, budget=STEPS)
    assert made.split == {}
    limbeck.run("ban", made, out=tmp_path / "run")
    assert not (tmp_path / "run/split.json").exists()


def test_weights_of_others_load_whatever_they_say_of_themselves(tmp_path: Path) -> None:
    state = {k: torch.ones_like(v) for k, v in nn.Linear(4, 3).state_dict().items()}
    for i, told in enumerate([None, {"format": "pt"}, {"limbeck": "x"}, {"limbeck": "{}"}]):
        save_file(state, tmp_path / f"{i}.safetensors", told)
        module = nn.Linear(4, 3)
        load_weights(module, tmp_path / f"{i}.safetensors")
        assert all((v == 1).all() for v in module.state_dict().values())
    other = {f"module.{k}": v for k, v in state.items()}
    save_file(other, tmp_path / "other.safetensors", {"limbeck": "{}"})
    told = r"has '\w+', which the file lacks, and the file has 'module\.\w+', which the model lacks"
    with pytest.raises(UsageError, match=told):
        load_weights(nn.Linear(4, 3), tmp_path / "other.safetensors")


def test_damaged_weights_of_ours_are_named_as_weights(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    checkpoints.save(file, nn.Linear(4, 3).state_dict())
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UsageError, match=r"the weights .* are damaged: .* give a whole copy"):
        load_weights(nn.Linear(4, 3), file)
