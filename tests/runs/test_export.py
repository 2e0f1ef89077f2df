"""Exported students: that they are the student, without limbeck, and what is refused.

Each case is exported first; one fresh process, in which limbeck cannot be imported, then executes
the lines of every README.txt and asks each student for the outputs of fixed inputs.
"""

import copy
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from limbeck.cli import main
from limbeck.cli.exporting import export as command
from limbeck.errors import Missing, UsageError
from limbeck.runs.export import Exported, export

pytestmark = pytest.mark.xdist_group("export")

MADE_OF = {"pt2": (), "safetensors": (), "onnx": ("onnx", "onnxruntime", "onnxscript")}
PICTURES = {"kind": "pictures", "size": [3, 8, 8], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
TABLE = {"kind": "table", "columns": list("abcdef"), "mean": [0.5] * 6, "std": [2.0] * 6}

# What the fresh process executes: the classes of cases whose weights need one, then each README.
CLASSES = """
import torch
from torch import nn

def conv():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(6 * 36, 4),
    )

def mlp(width=5):
    return nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 3)
    )

def pruned():
    return mlp(2)

class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = conv()
        self.backbone[5] = nn.Identity()
        self.projector = nn.Linear(6 * 36, 7)
    def forward(self, x):
        hidden = self.backbone(x)
        return {"hidden": hidden, "logits": self.projector(hidden)}

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.output = nn.Linear(4, 11, bias=False)
        self.output.weight = self.embedding.weight
    def forward(self, tokens, mask, unused):
        hidden = self.embedding(tokens) * mask[..., None]
        return (self.output(hidden.mean(1)), hidden)

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)
    def forward(self, a, b):
        return self.left(a) + self.right(b)
"""
FRESH = (
    "import sys\nsys.modules['limbeck'] = None\n"
    + CLASSES
    + """
import contextlib, io, json, os, pathlib
from safetensors.torch import load_file

try:
    import limbeck
    sys.exit("limbeck could be imported")
except ImportError:
    pass

def answer(folder, make):
    os.chdir(folder)
    lines = pathlib.Path("README.txt").read_text().splitlines()
    code = "\\n".join(l[4:] for l in lines if l.startswith("    ") or not l.strip())
    space, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, space)
    inputs = load_file(folder + ".inputs")
    if "load" in space:
        out = space["load"](eval(make))(**inputs) if "call" in make else None
        module = space["load"](eval(make + "()"))
        takes = [each["name"] for each in json.load(open("student.json"))["takes"]]
        keywords = type(module).__name__ == "Tied"
        out = module(**inputs) if keywords else module(*(inputs[name] for name in takes))
        out = out["logits"] if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
    elif "session" in space:
        out = torch.from_numpy(space["student"](**{k: v.numpy() for k, v in inputs.items()}))
    else:
        out = space["student"](**inputs)
    given = load_file(folder + ".outputs")["logits"]
    apart = float((out - given).abs().max()) if out.shape == given.shape else repr(out.shape)
    return apart, said.getvalue()

torch.set_grad_enabled(False)
told = {}
for folder, make in json.load(sys.stdin):
    try:
        told[folder] = answer(folder, make)
    except Exception as error:
        told[folder] = repr(error), ""
json.dump(told, sys.stdout)
"""
)
space: dict[str, Any] = {}
exec(CLASSES, space)


@dataclass
class Case:
    """A student, samples of what it takes, and what its export says of itself."""

    model: nn.Module
    samples: Any
    make: str = ""
    about: dict[str, Any] = field(default_factory=dict)


def lived(module: nn.Module, x: Tensor) -> nn.Module:
    """A module in train mode, with BatchNorm statistics that are no longer those of the start."""
    module.train()
    for _ in range(3):
        module(x * 2 + 1)
    return module


def prune(whole: nn.Sequential) -> nn.Sequential:
    """Two of five hidden units; buffers stay slices of the old ones, as surgery leaves them."""
    first, norm, last = copy.deepcopy([whole[0], whole[1], whole[4]])
    first.weight, first.bias = nn.Parameter(first.weight[1:3]), nn.Parameter(first.bias[1:3])
    norm.weight, norm.bias = nn.Parameter(norm.weight[1:3]), nn.Parameter(norm.bias[1:3])
    norm.running_mean, norm.running_var = norm.running_mean[1:3], norm.running_var[1:3]
    last.weight = nn.Parameter(last.weight[:, 1:3])
    return nn.Sequential(first, norm, nn.ReLU(), nn.Dropout(0.5), last)


def timm_model(head: int = 0) -> nn.Module:
    import timm

    model: Any = timm.create_model("test_resnet", num_classes=4)
    lived(model, torch.randn(4, 3, 8, 8))
    if head:
        model.fc = nn.Linear(model.fc.in_features, head)
    return model


def transformers_model() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=16, image_size=8, patch_size=4, num_labels=4)
    return ViTForImageClassification(config)


def cases() -> dict[str, Case]:
    torch.manual_seed(3)
    pictures, rows = torch.randn(7, 3, 8, 8), torch.randn(7, 6)
    whole = lived(space["mlp"](), rows)
    tokens = {
        "tokens": torch.randint(11, (7, 5)),
        "mask": torch.rand(7, 5),
        "unused": torch.randn(7, 2),
    }
    named = {"inputs": PICTURES, "names": ["ant", "bee", "cat", "dog"]}
    found = {
        "conv": Case(lived(space["conv"](), pictures), pictures, "conv", named),
        "rows": Case(whole, rows, "mlp", {"inputs": TABLE}),
        "pruned": Case(prune(whole), rows, "pruned"),
        "headed": Case(lived(space["Headed"](), pictures), pictures, "Headed"),
        "tied": Case(space["Tied"](), tokens, "Tied"),
        "pair": Case(space["Pair"](), (torch.randn(1, 3), torch.randn(1, 4)), "Pair"),
    }
    if importlib.util.find_spec("timm"):
        found["timm"] = Case(timm_model(), pictures, "", named)
    if importlib.util.find_spec("transformers"):
        model = transformers_model()
        found["transformers"] = Case(model, {"pixel_values": pictures}, "", named)
    return found


def outputs(model: nn.Module, samples: Any) -> Tensor:
    """What the student gives, asked by hand."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        if isinstance(samples, dict):
            out = model(**samples)
        else:
            out = model(*samples) if isinstance(samples, tuple) else model(samples)
    if isinstance(out, Tensor):
        return out
    return out[0] if isinstance(out, tuple) else out["logits"]


@dataclass
class Home:
    """What was exported, and what the fresh process said of it."""

    done: dict[str, Exported]
    cases: dict[str, Case]
    told: dict[str, tuple[Any, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    place = tmp_path_factory.mktemp("home")
    done, asked, every = {}, [], cases()
    for name, case in every.items():
        for to in (to for n, to in EACH if n == name):
            if not all(map(importlib.util.find_spec, MADE_OF[to])):
                continue
            folder = place / f"{name}-{to}"
            done[folder.name] = export(
                case.model, case.samples, to=to, out=folder, about=case.about
            )
            x = case.samples
            named = x if isinstance(x, dict) else {"x": x}
            if isinstance(x, tuple):
                named = {f"x{i}": v for i, v in enumerate(x)}
            more = {k: torch.cat((v, v[:1], v)) for k, v in named.items()}  # of another size
            save_file(more, f"{folder}.inputs")
            again = more if isinstance(x, dict) else tuple(more.values())
            expected = outputs(case.model, again)
            save_file({"logits": expected.contiguous()}, f"{folder}.outputs")
            asked.append((str(folder), case.make))
    run = subprocess.run(
        [sys.executable, "-c", FRESH], input=json.dumps(asked), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    told = {Path(folder).name: tuple(value) for folder, value in json.loads(run.stdout).items()}
    return Home(done, every, told)


NAMES = ["conv", "rows", "pruned", "headed", "tied", "pair", "timm", "transformers"]
NO_ONNX = ("pruned", "pair")  # it takes a second each, and these have nothing of their own there
EACH = [(n, to) for n in NAMES for to in MADE_OF if to != "onnx" or n not in NO_ONNX]


@pytest.mark.parametrize(("name", "to"), EACH)
def test_a_fresh_process_without_limbeck_gets_the_same_outputs(
    home: Home, name: str, to: str
) -> None:
    for package in (*MADE_OF[to], *(("timm",) if name == "timm" else ())):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    if name not in home.cases:
        pytest.skip(f"needs {name}")
    apart, _ = home.told[f"{name}-{to}"]
    assert isinstance(apart, float), apart
    assert apart <= 1e-5
    check = home.done[f"{name}-{to}"].check
    assert check.difference <= 1e-5
    assert {1, 2, 5} <= set(check.batches)


def test_the_outputs_are_those_of_a_student_that_does_not_drop(home: Home) -> None:
    case = home.cases["conv"]
    assert case.model.training  # it was exported from train mode, and left in it
    with torch.no_grad():
        assert (copy.deepcopy(case.model)(case.samples) - outputs(case.model, case.samples)).any()


def test_a_readme_names_the_classes(home: Home) -> None:
    said = home.told["conv-pt2"][1]
    assert any(name in said for name in home.cases["conv"].about["names"])
    if "conv-onnx" in home.told:
        assert home.told["conv-onnx"][1] == said


def test_pictures_and_rows_are_scaled_as_the_student_reads_them(home: Home) -> None:
    """The README's sample is the first, not yet to scale: its class is what the student says."""
    case = home.cases["conv"]
    best = outputs(case.model, case.samples[:1]).argmax(-1)
    assert home.told["conv-pt2"][1].strip() == str([case.about["names"][i] for i in best])
    mean, std = (torch.tensor(PICTURES[k]).view(-1, 1, 1) for k in ("mean", "std"))
    raw = json.loads((home.done["conv-pt2"].folder / "sample.json").read_text())["x"]
    torch.testing.assert_close(torch.tensor(raw), case.samples[:1] * std + mean)
    case = home.cases["rows"]
    best = outputs(case.model, case.samples[:1]).argmax(-1)
    assert home.told["rows-pt2"][1].strip() == str(best)
    raw = json.loads((home.done["tied-pt2"].folder / "sample.json").read_text())
    assert raw["tokens"] == home.cases["tied"].samples["tokens"][:1].tolist()


def test_student_json_says_what_goes_in_and_out(home: Home) -> None:
    folder = home.done["tied-pt2"].folder
    facts = json.loads((folder / "student.json").read_text())
    assert [each["name"] for each in facts["takes"]] == ["tokens", "mask", "unused"]
    assert facts["takes"][0]["shape"] == ["batch", 5]
    assert facts["takes"][0]["dtype"] == "int64"
    assert facts["gives"] == {"name": "logits", "shape": ["batch", 11], "dtype": "float32"}
    assert facts["parameters"] == 44
    digest = hashlib.sha256((folder / "model.pt2").read_bytes()).hexdigest()
    assert facts["files"]["model.pt2"]["sha256"] == digest
    conv = json.loads((home.done["conv-safetensors"].folder / "student.json").read_text())
    assert conv["inputs"] == PICTURES
    assert conv["names"] == ["ant", "bee", "cat", "dog"]


def test_no_file_tells_of_this_machine(home: Home) -> None:
    here = [str(Path.home()).encode(), str(Path(__file__).parent).encode(), b"site-packages"]
    for done in home.done.values():
        for path in done.folder.rglob("*"):
            held = path.read_bytes()
            assert not [each for each in here if len(each) > 2 and each in held], path


def test_tied_tensors_are_stored_once(home: Home) -> None:
    path = home.done["tied-safetensors"].file
    assert len(load_file(path)) == 1
    module = space["Tied"]()
    load_model(module, path)
    assert module.output.weight is module.embedding.weight
    with safe_open(path, "pt") as file:
        assert len(file.metadata()) == 1  # safetensors' own note of the other name


def test_graphs_give_logits_alone_and_take_any_batch(home: Home) -> None:
    if "headed-onnx" not in home.done:
        pytest.skip("needs onnx")
    import onnx

    for name, shape in (("headed", ["batch", 3, 8, 8]), ("tied", ["batch", 5])):
        graph = onnx.load(home.done[f"{name}-onnx"].file).graph
        assert [each.name for each in graph.output] == ["logits"]
        dims = graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in dims] == shape


def test_a_library_s_student_is_a_folder_of_that_library(home: Home) -> None:
    for name in ("timm", "transformers"):
        if name not in home.cases:
            pytest.skip(f"needs {name}")
        done = home.done[f"{name}-safetensors"]
        assert done.note == ""
        config = json.loads((done.folder / "config.json").read_text())
        if name == "timm":
            assert config["label_names"] == ["ant", "bee", "cat", "dog"]
            assert config["pretrained_cfg"]["mean"] == PICTURES["mean"]
            assert config["pretrained_cfg"]["input_size"] == [3, 8, 8]
            assert config["pretrained_cfg"]["crop_pct"] == 1.0
        else:
            assert config["id2label"] == {"0": "ant", "1": "bee", "2": "cat", "3": "dog"}
            assert "AutoModelForImageClassification" in (done.folder / "README.txt").read_text()


def test_a_pipeline_shows_pictures_as_the_student_read_them(home: Home) -> None:
    if "transformers" not in home.cases:
        pytest.skip("needs transformers")
    if importlib.util.find_spec("PIL") is None:
        pytest.skip("needs pillow")
    from PIL import Image
    from transformers import AutoImageProcessor

    folder = home.done["transformers-safetensors"].folder
    wide = Image.new("RGB", (16, 8), (0, 0, 0))
    wide.paste((51, 102, 255), (4, 0, 12, 8))  # the middle, which is what is to be seen
    shown = AutoImageProcessor.from_pretrained(folder)(wide, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(PICTURES[k]).view(-1, 1, 1) for k in ("mean", "std"))
    expected = (torch.tensor([0.2, 0.4, 1.0]).view(-1, 1, 1) - mean) / std
    torch.testing.assert_close(shown[0], expected.expand(3, 8, 8))


def test_a_column_s_name_cannot_become_a_line_of_code(tmp_path: Path) -> None:
    columns = ["a", "b\nraise SystemExit", "c"]
    about = {"inputs": {"kind": "table", "columns": columns, "mean": [0] * 3, "std": [1] * 3}}
    done = export(nn.Linear(3, 2), torch.ones(2, 3), to="pt2", out=tmp_path, about=about)
    text = (done.folder / "README.txt").read_text()
    assert "'b\\nraise SystemExit'" in text
    assert not [line for line in text.splitlines() if line.strip().startswith("raise")]


@pytest.mark.parametrize("how", ["head", "activation"])
def test_a_changed_student_of_a_library_is_left_as_weights(tmp_path: Path, how: str) -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    model: Any = timm_model(head=9 if how == "head" else 0)
    if how == "activation":  # the same state dict, other outputs
        model.act1 = nn.Tanh()
    done = export(model, torch.randn(3, 3, 8, 8), to="safetensors", out=tmp_path / "out")
    assert "timm does not build this student again" in done.note
    assert sorted(p.name for p in done.folder.iterdir()) == [
        "README.txt",
        "model.safetensors",
        "sample.json",
        "student.json",
    ]
    other: Any = timm_model(head=9 if how == "head" else 0)
    load_model(other, done.file)
    assert torch.equal(other.fc.weight, model.fc.weight)


# --- what is refused -----------------------------------------------------------------------------


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(())


class Endless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def refused(kind: type[Exception], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    told = str(caught.value)
    assert "\n" not in told
    return told


def test_what_cannot_be_a_graph_is_told_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    x = torch.randn(4, 6)
    out = tmp_path / "out"
    told = refused(UsageError, lambda: export(Branch(), x, to="pt2", out=out))
    assert "data-dependent" in told
    assert "test_export.py, line" in told
    assert "x.sum() > 0" in told
    assert "'safetensors'" in told
    told = refused(UsageError, lambda: export(Fixed(), x[:2], to="pt2", out=out))
    assert "fixes the batch size at 2" in told
    assert not out.exists()
    assert capfd.readouterr() == ("", "")


def test_what_onnx_does_not_know_is_told(tmp_path: Path) -> None:
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("needs onnxscript")
    told = refused(UsageError, lambda: export(Odd(), torch.randn(2, 3), to="onnx", out=tmp_path))
    assert "bessel_j0" in told
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_the_student_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = refused(UsageError, lambda: export(Noisy(), torch.zeros(2, 3), to="pt2", out=out))
    assert "is not the original: outputs differ by 0." in told
    assert "0.0001 is allowed" in told
    assert not out.exists()
    told = refused(UsageError, lambda: export(Endless(), torch.ones(2, 3), to="pt2", out=out))
    assert "infinite or not-a-number" in told


def test_a_random_student_leaves_the_generators_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    export(nn.Dropout(), torch.zeros(2, 3), to="safetensors", out=tmp_path)
    with pytest.raises(UsageError):
        export(Noisy(), torch.zeros(2, 3), to="safetensors", out=tmp_path / "other")
    assert torch.equal(before, torch.get_rng_state())


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    net = nn.Linear(3, 2)
    told = refused(Missing, lambda: export(net, torch.ones(2, 3), to="onnx", out=tmp_path))
    assert "limbeck[export]" in told


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([1, 2], "a list"),
        ({"x": torch.ones(2, 3), "y": None}, "a NoneType"),
        ({}, "nothing"),
        ((torch.ones(2, 3), torch.ones(3, 3)), "x0 2, x1 3"),
        ({"a b": torch.ones(2, 3)}, "'a b'"),
        (torch.ones(0, 3), "x 0"),
        (torch.ones(2, 4), "does not take the samples"),
    ],
)
def test_samples_that_are_none_are_refused(tmp_path: Path, samples: Any, said: str) -> None:
    net = nn.Linear(3, 2)
    told = refused(UsageError, lambda: export(net, samples, to="pt2", out=tmp_path / "out"))
    assert said in told


def test_other_mistakes_are_sentences(tmp_path: Path) -> None:
    net, x = nn.Linear(3, 2), torch.ones(2, 3)
    told = refused(UsageError, lambda: export(net, x, to="onx", out=tmp_path))
    assert "did you mean 'onnx'?" in told
    wrong: Any = lambda x: x  # noqa: E731
    assert "a function" in refused(UsageError, lambda: export(wrong, x, to="pt2", out=tmp_path))
    about = {"names": {1, 2}}
    call = lambda: export(net, x, to="pt2", out=tmp_path, about=about)  # noqa: E731
    assert "not JSON" in refused(UsageError, call)


def test_only_an_earlier_export_of_the_same_student_is_replaced(tmp_path: Path) -> None:
    net, x = nn.Linear(3, 2), torch.ones(2, 3)
    out = tmp_path / "out"
    export(net, x, to="safetensors", out=out)
    (out / "mine.txt").write_text("kept")
    (out / "model.safetensors").write_text("damaged")
    export(net, x, to="safetensors", out=out)
    assert (out / "mine.txt").read_text() == "kept"
    assert torch.equal(load_file(out / "model.safetensors")["weight"], net.weight)
    told = refused(UsageError, lambda: export(net, x, to="pt2", out=out))
    assert "holds this student, exported to safetensors" in told
    other = nn.Linear(3, 2)
    told = refused(UsageError, lambda: export(other, x, to="safetensors", out=out))
    assert "holds another student" in told
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("a")
    told = refused(UsageError, lambda: export(net, x, to="pt2", out=tmp_path / "full"))
    assert "not empty and holds no exported student" in told
    told = refused(UsageError, lambda: export(net, x, to="pt2", out=tmp_path / "full/a.txt/b"))
    assert "name another folder" in told
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "README.txt",
        "a.txt",
        "mine.txt",
        "model.safetensors",
        "sample.json",
        "student.json",
    ]


def test_half_precision_and_double_are_the_student_too(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    for dtype in (torch.float64, torch.bfloat16):
        net = lived(space["mlp"](), x).to(dtype)
        done = export(net, x.to(dtype), to="pt2", out=tmp_path / str(dtype))
        assert done.check.holds
        facts = json.loads((done.folder / "student.json").read_text())
        assert facts["takes"][0]["dtype"] == str(dtype)[6:]


# --- the command ---------------------------------------------------------------------------------

TASK = """
import torch
from torch import nn
from limbeck import Budget, Task

def net(width):
    hidden = (nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1))
    return nn.Sequential(*hidden, nn.Linear(width, 3))

def make():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(160, 6, generator=g)
    y = x[:, :3].argmax(1)
    torch.manual_seed(2)
    sets = {"train": (x[:96], y[:96]), "test": (x[96:], y[96:])}
    readers = {"student": lambda x: x / 2}
    about = {"inputs": {"kind": "table", "columns": list("abcdef"), "mean": [0.0] * 6,
                        "std": [2.0] * 6}, "names": ["one", "two", "three"]}
    return Task(net(16), lambda: net(4), **sets, readers=readers, about=about,
                budget=Budget(steps=12, batch=16))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    return tmp_path


def test_the_command_exports_the_student_that_was_scored(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "kd", "--task", "task.py:make", "--out", "r", "--quiet"]) == 0
    capsys.readouterr()
    assert command(["r", "--to", "pt2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("r/export/pt2/model.pt2 (")
    assert "on 8 samples, in batches of 1, 2, 5, 8" in out
    assert len(out.strip().splitlines()) == 2
    result = json.loads((place / "r/result.json").read_text())
    facts = json.loads((place / "r/export/pt2/student.json").read_text())
    assert facts["scores"]["accuracy"] == result["score"]
    assert facts["names"] == ["one", "two", "three"]
    assert facts["about"]["method"] == "kd"
    own: dict[str, Any] = {}
    exec(TASK, own)
    x, y = own["make"]().test
    program = torch.export.load(place / "r/export/pt2/model.pt2").module()
    assert float((program(x / 2).argmax(1) == y).double().mean()) == result["score"]
    assert command(["r", "--to", "pt2"]) == 0  # again, over the first
    assert command(["r", "--to", "safetensors", "--out", "home"]) == 0
    assert (place / "home/model.safetensors").exists()


def test_the_command_refuses_in_sentences(place: Path) -> None:
    def told(*words: str) -> str:
        return refused(UsageError, lambda: command(list(words)))

    assert "no run in r" in told("r", "--to", "pt2")
    (place / "r").mkdir()
    (place / "r/run.json").write_text('{"method": "kd"}')
    (place / "r/result.json").write_text("{}")
    assert "limbeck.export(result.model" in told("r", "--to", "pt2")
    (place / "r/run.json").write_text('{"request": {"method": "kd"}}')
    assert "gave no model" in told("r", "--to", "pt2")
    (place / "r/result.json").unlink()
    assert "limbeck resume r" in told("r", "--to", "pt2")
    (place / "many/seed-3").mkdir(parents=True)
    (place / "many/seed-3/run.json").write_text("{}")
    assert "name one of them, as many/seed-3" in told("many", "--to", "pt2")
    assert "--to" in told("r", "--to", "pickle")
    assert "--to" in told("r")
