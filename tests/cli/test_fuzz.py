"""Bad input, over all commands: one sentence, exit code 2, and nothing left behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limbeck.cli import main

pytestmark = pytest.mark.xdist_group("fuzz")

NETS = """
import torch
from torch import nn

def big(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, classes))

class Small(nn.Sequential):
    def __init__(self, classes=3):
        super().__init__(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, classes))

class Wide(nn.Sequential):
    def __init__(self, classes=3):
        super().__init__(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, classes))

def raises():
    raise RuntimeError("no\\nluck")

def three():
    return 3

def needs(depth):
    return nn.Linear(4, depth)

class Blind(nn.Module):
    def forward(self, x):
        return None

number = 7
data_bad = (torch.zeros(4, 4), torch.zeros(3))
data_text = "hello"
data_nan = (torch.full((40, 4), float("nan")), torch.arange(40) % 3)
"""
JUNK = bytes(range(256)) * 8
HOME = "own.py"
OWN = ("--teacher", "nets.py:big", "--student", "nets.py:Small", "--data", "good.csv")
RUN = ("run", "kd", *OWN, "--steps", "2")


def without(flag: str, *words: str) -> tuple[str, ...]:
    i = words.index(flag)
    return (*words[:i], *words[i + 2 :])


def instead(flag: str, value: str) -> tuple[str, ...]:
    i = RUN.index(flag)
    return (*RUN[: i + 1], value, *RUN[i + 2 :])


def csv(rows: list[list[object]], header: str = "a,b,c,d,kind") -> str:
    return "\n".join([header, *(",".join(map(str, r)) for r in rows)]) + "\n"


def picture(path: Path, size: tuple[int, int] = (9, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(str(path))).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good thing of each kind and many bad ones."""
    place = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("LIMBECK_CACHE", str(place / "kept"))
        _tables(place)
        _pictures(place)
        (place / "nets.py").write_text(NETS)
        (place / "broken.py").write_text("def big(:\n")
        (place / "notes.py").write_text("import nothing_of_that_name\n")
        (place / "junk.safetensors").write_bytes(JUNK)
        (place / "empty.safetensors").write_bytes(b"")
        (place / "weights.bin").write_bytes(JUNK)
        save_file({"0.weight": torch.zeros(2, 2)}, place / "other.safetensors")
        assert main([*RUN, "--out", "done", "--quiet"]) == 0
        assert main(["cache", *OWN, "--out", "kept_outputs", "--quiet"]) == 0
        _runs(place)
    return place


def _tables(place: Path) -> None:
    rng = np.random.default_rng(0)
    rows: list[list[object]] = [
        [*np.round(rng.normal(i % 3, 1, 4), 3), "abc"[i % 3]] for i in range(60)
    ]
    files = {
        "good.csv": csv(rows),
        "nothing.csv": "",
        "header.csv": "a,b,c,d,kind\n",
        "ragged.csv": csv(rows) + "1,2\n",
        "missing.csv": csv([*rows, ["", 1, 2, 3, "a"]]),
        "one.csv": csv([[r[0]] for r in rows], "a"),
        "alike.csv": csv([[*r[:4], "a"] for r in rows]),
        "reals.csv": csv([[*r[:4], 0.1 + i / 7] for i, r in enumerate(rows)]),
        "words.csv": csv([[f"w{i}", *r[1:]] for i, r in enumerate(rows)]),
        "few.csv": csv(rows[:2]),
        "twice.csv": csv(rows, "a,a,c,d,kind"),
        "data.jsonl": json.dumps({"text": "hello"}) + "\n",
        "data.xls": "x",
    }
    for name, text in files.items():
        (place / name).write_text(text)
    (place / "junk.csv").write_bytes(JUNK)
    (place / "junk.npz").write_bytes(JUNK)
    (place / "junk.parquet").write_bytes(JUNK)
    np.savez(place / "pickled.npz", x=np.array([{}, []], dtype=object), y=np.zeros(2))
    np.savez(place / "xonly.npz", x=np.zeros((4, 4)))
    np.savez(place / "lengths.npz", x=np.zeros((4, 4)), y=np.zeros(3, int))


def _pictures(place: Path) -> None:
    for i in range(24):
        picture(place / "photos" / "ab"[i % 2] / f"{i}.png")
    for i in range(6):
        picture(place / "alone" / "only" / f"{i}.png")
    (place / "bare").mkdir()
    (place / "classes" / "a").mkdir(parents=True)
    (place / "classes" / "b").mkdir()
    shutil.copytree(place / "photos", place / "spoilt")
    (place / "spoilt" / "a" / "broken.png").write_bytes(JUNK)
    shutil.copytree(place / "photos", place / "cut")
    whole = (place / "photos" / "a" / "0.png").read_bytes()
    (place / "cut" / "a" / "0.png").write_bytes(whole[: len(whole) // 2])


def _runs(place: Path) -> None:
    shutil.copytree(place / "done", place / "unfinished")
    (place / "unfinished" / "result.json").unlink()
    for name, file, content in (
        ("r_binary", "run.json", JUNK),
        ("r_list", "run.json", b"[1, 2]"),
        ("r_empty", "run.json", b"{}"),
        ("r_half", "run.json", b'{"request": {"method": "kd"}}'),
        ("r_result", "result.json", JUNK),
        ("r_metrics", "metrics.jsonl", JUNK),
        ("r_appraisal", "appraisal.json", JUNK),
        ("r_student", "student.safetensors", JUNK),
        ("r_stage", "checkpoints/fit.done.safetensors", JUNK),
    ):
        shutil.copytree(place / "done", place / name)
        (place / name / file).write_bytes(content)
    shutil.copytree(place / "done", place / "r_changed")
    told = json.loads((place / "done" / "run.json").read_text())
    told["request"]["hashes"] = {str(place / "nets.py"): "0" * 64}
    (place / "r_changed" / "run.json").write_text(json.dumps(told))
    for name in ("r_empty", "r_changed", "r_half"):  # and none of them finished
        shutil.copytree(place / name, place / name.replace("r_", "u_"))
        (place / name.replace("r_", "u_") / "result.json").unlink()
    shutil.copytree(place / "kept_outputs", place / "c_cut")
    rows = place / "c_cut" / "logits.rows"
    rows.write_bytes(rows.read_bytes()[:-3])
    shutil.copytree(place / "kept_outputs", place / "c_junk")
    (place / "c_junk" / "cache.json").write_bytes(JUNK)
    (place / "a_file").write_text("x")


CASES: list[tuple[str, ...]] = [
    # the command itself
    ("rnu",),
    ("run",),
    ("run", "--help-me"),
    ("list", "--kind", "relations"),
    ("list", "--room", "kitchen"),
    ("list", "--gives", "money"),
    ("list", "--needs", "luck"),
    ("list", "extra"),
    ("show",),
    ("show", "kdd2"),
    ("show", "nets.py"),
    ("show", "broken.py"),
    ("show", "--modules", "nets.py:nothing"),
    ("show", "--modules", "nets.py:three"),
    ("show", "--modules", "timm:resnet_of_nobody"),
    ("show", "--modules", "nets.py:big", "--input", "tree"),
    # models
    ("run", "k\N{LATIN SMALL LETTER E WITH ACUTE}d", *OWN),
    ("run", "../kd", *OWN),
    instead("--teacher", ""),
    instead("--teacher", "nets.py"),
    instead("--teacher", "nets.py:nothing"),
    instead("--teacher", "nets.py:raises"),
    instead("--teacher", "nets.py:three"),
    instead("--teacher", "nets.py:needs"),
    instead("--teacher", "nets.py:number"),
    instead("--teacher", "nets.py:Blind"),
    instead("--teacher", "broken.py:big"),
    instead("--teacher", "notes.py:big"),
    instead("--teacher", "nowhere.py:big"),
    instead("--teacher", "nets.py:big@junk.safetensors"),
    instead("--teacher", "nets.py:big@empty.safetensors"),
    instead("--teacher", "nets.py:big@other.safetensors"),
    instead("--teacher", "nets.py:big@nowhere.safetensors"),
    instead("--teacher", "nets.py:big@weights.bin"),
    instead("--teacher", "nets.py:big@"),
    instead("--teacher", "a_file"),
    instead("--teacher", "bare"),
    instead("--teacher", "tim:resnet18"),
    instead("--teacher", "timm:"),
    instead("--teacher", "http://"),
    instead("--teacher", "http://me:pw@localhost/"),
    instead("--teacher", "kept_outputs"),
    instead("--teacher", "r_binary"),
    instead("--teacher", "unfinished_of_nobody"),
    instead("--student", "none"),
    instead("--student", "https://localhost/predict"),
    instead("--student", "nets.py:Wide"),
    instead("--student", "kept_outputs"),
    instead("--student", "nets.py:three"),
    without("--student", *RUN),
    without("--data", *RUN),
    without("--teacher", *RUN),
    # data
    instead("--data", ""),
    instead("--data", "nowhere.csv"),
    instead("--data", "nothing.csv"),
    instead("--data", "header.csv"),
    instead("--data", "ragged.csv"),
    instead("--data", "missing.csv"),
    instead("--data", "one.csv"),
    instead("--data", "alike.csv"),
    instead("--data", "reals.csv"),
    instead("--data", "words.csv"),
    instead("--data", "twice.csv"),
    instead("--data", "junk.csv"),
    instead("--data", "junk.npz"),
    instead("--data", "junk.parquet"),
    instead("--data", "junk.safetensors"),
    instead("--data", "pickled.npz"),
    instead("--data", "xonly.npz"),
    instead("--data", "lengths.npz"),
    instead("--data", "data.jsonl"),
    instead("--data", "data.xls"),
    instead("--data", "sklearn:digit"),
    instead("--data", "sklearn:"),
    instead("--data", "hf:"),
    instead("--data", "nets.py:data_bad"),
    instead("--data", "nets.py:data_text"),
    instead("--data", "nets.py:data_nan"),
    instead("--data", "bare"),
    instead("--data", "\N{SNOWMAN}/\N{PILE OF POO}.csv"),
    (*RUN, "--test", "nowhere.csv"),
    (*RUN, "--test", "photos"),
    (*RUN, "--target", "nothing"),
    (*RUN, "--augment", "flip"),
    (*RUN, "--augment", "shake"),
    (*RUN, "--room", "kitchen"),
    (*RUN, "--room", "language"),
    (*RUN, "--pretrained", "perhaps"),
    # pictures
    (
        "run",
        "kd",
        "--teacher",
        "timm:resnet_of_nobody",
        "--student",
        "timm:resnet10t",
        "--data",
        "photos",
    ),
    ("run", "kd", "--teacher", "none", "--student", "timm:resnet10t", "--data", "bare"),
    ("run", "kd", "--teacher", "none", "--student", "timm:resnet10t", "--data", "classes"),
    ("run", "kd", "--teacher", "none", "--student", "timm:resnet10t", "--data", "alone"),
    ("run", "kd", "--teacher", "none", "--student", "timm:resnet10t", "--data", "spoilt"),
    ("run", "kd", "--teacher", "none", "--student", "timm:resnet10t", "--data", "cut"),
    (
        "run",
        "kd",
        "--teacher",
        "none",
        "--student",
        "torchvision:resnet_of_nobody",
        "--data",
        "photos",
    ),
    # numbers and places
    (*RUN, "--epochs", "3"),
    (*RUN, "--batch", "0"),
    (*RUN, "--batch", "-5"),
    (*RUN, "--lr", "nan"),
    (*RUN, "--lr", "-1"),
    (*RUN, "--lr", "1e400"),
    (*RUN, "--accumulate", "0"),
    (*RUN, "--accumulate", "1000"),
    (*RUN, "--workers", "-1"),
    (*RUN, "--workers", "999999999"),
    (*RUN, "--precision", "fp8"),
    (*RUN, "--seed", "x"),
    (*RUN, "--seeds", "0"),
    (*RUN, "--tau", "warm"),
    (*RUN, "--tau", "-1"),
    (*RUN, "--tau", "9" * 400),
    (*RUN, "--label", "((((" * 200),
    (*RUN, "--tua", "1"),
    (*RUN, "--device", "toaster"),
    (*RUN, "--taps", "mid"),
    (*RUN, "--taps", "mid=a,b,c"),
    (*RUN, "--out", "/proc/limbeck/run"),
    (*RUN, "--out", "a_file"),
    (*RUN, "--out", "a_file/run"),
    (*RUN, "--out", "photos"),
    (*RUN, "--out", "x" * 300),
    (*RUN, "--cache", "nowhere"),
    (*RUN, "--cache", "c_cut"),
    (*RUN, "--cache", "c_junk"),
    (*RUN, "--cache", "bare"),
    ("run", "kd", "--world", "digit"),
    ("run", "kd", "--world", "digits(n=1)"),
    ("run", "kd", "--world", "digits(n=abc)"),
    ("run", "kd", "--world", "digits(((("),
    ("run", "kd", "--world", "digits(teacher=3)"),
    ("run", "kd", "--world", "digits", "--teacher", "nets.py:big"),
    ("run", "kd", "--world", "digits", "--augment", "flip"),
    ("run", "kd", "--task", "nets.py"),
    ("run", "kd", "--task", "nets.py:three"),
    ("run", "kd", "--task", "broken.py:make"),
    ("run", "fitnets", *OWN, "--steps", "2", "--taps", "mid=0,nowhere"),
    # what is there of a run
    ("resume",),
    ("resume", "nowhere"),
    ("resume", "r_binary"),
    ("resume", "r_list"),
    ("resume", "u_empty"),
    ("resume", "u_changed"),
    ("resume", "u_half"),
    ("report", "nowhere"),
    ("report", "unfinished"),
    ("report", "r_binary"),
    ("report", "r_result"),
    ("report", "r_appraisal"),
    ("report", "a_file"),
    ("report", "done", "--out", "/proc/limbeck/page.html"),
    ("export", "done"),
    ("export", "done", "--to", "pickle"),
    ("export", "nowhere", "--to", "pt2"),
    ("export", "unfinished", "--to", "pt2"),
    ("export", "r_binary", "--to", "safetensors"),
    ("export", "r_empty", "--to", "safetensors"),
    ("export", "r_half", "--to", "safetensors"),
    ("export", "r_stage", "--to", "safetensors"),
    ("export", "r_changed", "--to", "safetensors"),
    ("export", "done", "--to", "safetensors", "--out", "a_file"),
    ("export", "done", "--to", "safetensors", "--out", "/proc/limbeck/x"),
    ("doctor",),
    ("doctor", "nowhere"),
    ("doctor", "r_binary"),
    ("doctor", "r_list"),
    ("doctor", "a_file"),
    ("doctor", "--world", "digit"),
    ("doctor", "--task", "nets.py:three"),
    ("doctor", *without("--data", *OWN)),
    ("doctor", *OWN, "--method", "kdd2"),
    # the others
    ("cache", *OWN),
    ("cache", "--out", "c_new"),
    ("cache", *OWN, "--out", "photos"),
    ("cache", *OWN, "--out", "a_file"),
    ("cache", *OWN, "--out", "c_new", "--entries", "luck"),
    ("cache", *OWN, "--out", "c_new", "--entries", ","),
    ("cache", *OWN, "--out", "c_new", "--dtype", "int4"),
    ("cache", *OWN, "--out", "c_new", "--batch", "0"),
    ("cache", *instead("--teacher", "none")[2:-2], "--out", "c_new"),
    ("check", "kdd2"),
    ("check", "broken.py"),
    ("check", "nets.py"),
    ("check", "kd", "--only", "luck"),
    ("new",),
    ("new", "Bad-Key", "--room", "vision"),
    ("new", "kd", "--room", "vision"),
    ("new", "class", "--room", "vision"),
    ("new", "fresh", "--room", "kitchen"),
    ("completion",),
    ("completion", "tcsh"),
    ("speed", "--threads", "0"),
    ("bench", "rdk"),
    ("bench", "kd", "--jobs", "0"),
    ("bench", "--again", "1000"),
    ("leaderboard", "rdk"),
    ("leaderboard", "--cell", "moon"),
    ("leaderboard", "--kind", "relatoin"),
    ("leaderboard", "--again", "4000"),
    ("suggest",),
    ("suggest", "--world", "digitz"),
    ("suggest", "--world", "digits", "--data", "x.csv"),
    ("demo", "--methods", "kdd2"),
    ("demo", "--seeds", "0"),
    ("demo", "--out", "a_file"),
]


def test_there_are_a_hundred_cases_over_all_commands() -> None:
    from limbeck.cli import COMMANDS

    assert len(CASES) >= 100
    assert len(set(CASES)) == len(CASES)
    assert {words[0] for words in CASES} >= set(COMMANDS)


@pytest.mark.parametrize("words", CASES, ids=lambda words: " ".join(words)[:60])
def test_bad_input_is_one_sentence_and_exit_code_2(
    kitchen: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(kitchen)
    monkeypatch.setenv("LIMBECK_CACHE", str(kitchen / "kept"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted(p.name for p in kitchen.iterdir())
    code = main(list(words))
    told = capsys.readouterr()
    *_, last = told.err.strip().split("\n")
    assert code == 2, told.out + told.err
    assert last.startswith("error: ")
    assert told.err.count("error: ") == 1
    assert "Traceback" not in told.err
    assert len(last) < 700
    after = sorted(p.name for p in kitchen.iterdir() if p.name not in ("__pycache__", "c_new"))
    assert [name for name in after if name not in before] in ([], ["runs"])
    left = list(kitchen.glob("runs/*"))
    shutil.rmtree(kitchen / "runs", ignore_errors=True)
    assert not left
