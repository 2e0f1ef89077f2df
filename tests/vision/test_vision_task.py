"""vision.task: pictures, readers and models, each against a second road to the same."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck import vision
from limbeck.core import hub
from limbeck.core.data import Table
from limbeck.core.identity import task_digests
from limbeck.core.rng import globals_kept
from limbeck.core.task import Budget, Task
from limbeck.core.teachers import BlackBox, Frozen, Nobody
from limbeck.core.untrained import Untrained
from limbeck.errors import Missing, UsageError
from limbeck.vision._kit import keeping

pytestmark = pytest.mark.xdist_group("vision_task")
for package in ("PIL", "timm", "torchvision"):
    if find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)

NAMES = ("ape", "bee", "cow")
BUDGET = Budget(steps=2, batch=8)


def need(*packages: str) -> None:
    for name in packages:
        if find_spec(name) is None:
            pytest.skip(f"needs {name}")


def paint(label: int, i: int, size: tuple[int, int] = (24, 24), bands: str = "RGB"):
    from PIL import Image

    noise = np.random.default_rng(100 * label + i).integers(0, 120, (size[1], size[0], 3))
    noise[..., label] += 130
    return Image.fromarray(noise.astype(np.uint8)).convert(bands)


def fill(root: Path, each: int = 12, names: tuple[str, ...] = NAMES, **how) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(each):
            paint(NAMES.index(name), i, **how).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("pictures") / "zoo")


def net(classes: int = 3, channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, classes),
    )  # fmt: skip


def rows(source: object) -> tuple[Tensor, Tensor]:
    table = Table(source)
    batch = table.rows(torch.arange(len(table)), "all")
    return batch.x, batch.y


# --- pictures ------------------------------------------------------------------------------------


def test_a_folder_is_kept_as_it_is_and_split_by_class(folder: Path) -> None:
    task = vision.task("timm:test_resnet", net, str(folder), pretrained=False)
    found = []
    for part in ("train", "valid", "test"):
        x, y = rows(task.set(part))
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 24, 24)  # small pictures stay small
        assert len(x) == task.about["split"][part]
        assert set(y.tolist()) == {0, 1, 2}
        found += [(int(k), p.numpy().tobytes()) for p, k in zip(x, y, strict=True)]
    expected = [
        (k, np.asarray(paint(k, i)).transpose(2, 0, 1).tobytes())
        for k in range(3)
        for i in range(12)
    ]
    assert sorted(found) == sorted(expected)
    assert task.about["split"]["made"]
    assert task.about["names"] == list(NAMES) == list(task.data["names"])
    assert task.about["source"] == folder.name  # exported: it tells no one where the user lives
    assert task.name == "net-zoo"
    assert task.classes == 3


def test_scratch_models_are_normalised_by_the_training_pictures(folder: Path) -> None:
    task = vision.task(None, "timm:test_resnet", str(folder))
    x = rows(task.train)[0].numpy().astype(float).transpose(0, 2, 3, 1).reshape(-1, 3) / 255
    told = task.about["inputs"]
    assert told["mean"] == pytest.approx(x.mean(0), abs=1e-4)
    assert told["std"] == pytest.approx(x.std(0), abs=1e-4)
    assert told["size"] == [3, 32, 32]  # as few pixels as the architecture takes well
    assert task.readers["student"](rows(task.test)[0]).shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_reader_resizes_cuts_and_normalises_as_torchvision_does(interpolation: str) -> None:
    from torchvision.transforms import InterpolationMode, v2

    from limbeck.vision._kit.readers import Reader

    x = torch.randint(0, 256, (4, 3, 40, 60), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    road = v2.Compose([
        v2.ToDtype(torch.float32, scale=True),
        v2.Resize(20, InterpolationMode(interpolation), antialias=True),
        v2.Lambda(lambda x: x.clamp(0, 1)),
        v2.CenterCrop(20),
        v2.Normalize(mean, std),
    ])  # fmt: skip
    reader = Reader(3, 20, mean, std, interpolation)
    torch.testing.assert_close(reader(x), road(x))
    named = Reader(3, 20, mean, std, interpolation, "pixel_values")
    assert torch.equal(named(x)["pixel_values"], reader(x))
    if interpolation == "bilinear":  # bytes and floats in 0..1 are the same pictures
        torch.testing.assert_close(reader(x.float() / 255), reader(x))
    assert repr(reader) == repr(Reader(3, 20, mean, std, interpolation))


def test_grey_and_colour_are_made_from_each_other() -> None:
    from PIL import Image

    from limbeck.vision._kit.readers import Reader

    colour = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(colour).convert("L")).astype(float) / 255
    ours = Reader(1)(torch.from_numpy(colour).permute(2, 0, 1)[None])[0, 0]
    assert np.abs(ours.numpy() - grey).max() < 1.01 / 255
    three = Reader(3)(torch.full((1, 1, 2, 2), 51, dtype=torch.uint8))
    assert torch.equal(three, torch.full((1, 3, 2, 2), 51 / 255))


def test_large_pictures_of_all_sizes_are_cut_to_the_larger_side(tmp_path: Path) -> None:
    for k, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        for i in range(8):
            paint(k, i, (90 + 10 * i, 60 + 5 * i)).save(tmp_path / name / f"{i}.jpg")
    task = vision.task(None, "timm:test_vit", str(tmp_path))
    x, y = rows(task.train)
    assert x.shape[1:] == (3, *(task.about["inputs"]["size"][1],) * 2)
    brightest = x.float().mean((2, 3)).argmax(1)
    assert torch.equal(brightest, y)


def test_what_does_not_fit_into_memory_is_opened_when_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = vision.task(None, net, str(folder))
    monkeypatch.setattr(keeping, "MEMORY", 0)
    far = vision.task(None, net, str(folder))
    assert isinstance(near.train, tuple)
    assert not isinstance(far.train, tuple)
    for one, two in zip(rows(near.train), rows(far.train), strict=True):
        assert torch.equal(one, two)
    assert near.about == far.about


def test_parts_of_a_folder_and_further_test_pictures(tmp_path: Path) -> None:
    for part, each in (("train", 6), ("val", 2), ("test", 3)):
        fill(tmp_path / "all" / part, each)
    task = vision.task(None, net, str(tmp_path / "all"))
    split = {"train": 18, "valid": 6, "test": 9, "made": False}
    assert task.about["split"] == split
    fill(tmp_path / "more", 4, NAMES[1:])  # without the first class
    task = vision.task(None, net, str(tmp_path / "all" / "train"), test=str(tmp_path / "more"))
    assert rows(task.test)[1].tolist() == [1] * 4 + [2] * 4
    assert task.about["split"]["test"] == 8
    assert task.about["split"]["valid"] == 3
    assert "held out" in " ".join(task.notes)


def test_grey_pictures_stay_grey_in_memory(tmp_path: Path) -> None:
    fill(tmp_path / "grey", bands="L")
    task = vision.task(None, "timm:test_resnet", str(tmp_path / "grey"))
    assert rows(task.train)[0].shape[1] == 1
    shown = task.readers["student"](rows(task.train)[0][:2])
    assert shown.shape[1] == 3
    assert torch.equal(shown[:, 0], shown[:, 2])


@pytest.mark.parametrize("augment", ["flip", "crop,flip"])
def test_augmentation_is_a_function_of_place_and_of_train_only(folder: Path, augment: str) -> None:
    plain = vision.task(None, net, str(folder))
    task = vision.task(None, net, str(folder), augment=augment)
    table, numbers = Table(task.train), torch.arange(16)
    one, again, other = (table.rows(numbers, 0, epoch).x for epoch in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(rows(task.test)[0], rows(plain.test)[0])
    if augment == "flip":
        raw = rows(plain.train)[0][:16]
        kept = [torch.equal(a, b) for a, b in zip(one, raw, strict=True)]
        turned = [torch.equal(a, b.flip(-1)) for a, b in zip(one, raw, strict=True)]
        assert all(a != b for a, b in zip(kept, turned, strict=True))
        assert 0 < sum(turned) < 16


# --- other sources -------------------------------------------------------------------------------


def test_hugging_face_data(tmp_path: Path) -> None:
    need("datasets")
    import datasets

    n = 30
    labels = [i % 3 for i in range(n)]
    columns = {
        "img": [paint(k, i) for i, k in enumerate(labels)],
        "kind": [NAMES[k] for k in labels],
        "label": labels,
    }
    features = datasets.Features({
        "img": datasets.Image(),
        "kind": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["x", "y", "z"]),
    })  # fmt: skip
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "one")
    task = vision.task(None, net, f"hf:{tmp_path / 'one'}")
    assert task.about["names"] == ["x", "y", "z"]
    x, y = rows(task.test)
    for picture, k in zip(x, y.tolist(), strict=True):
        assert picture.float().mean((1, 2)).argmax() == k
    task = vision.task(None, net, f"hf:{tmp_path / 'one'}", target="kind")
    assert task.about["names"] == list(NAMES)
    with pytest.raises(Missing, match=r"no column 'knd'; did you mean 'kind'\?"):
        vision.task(None, net, f"hf:{tmp_path / 'one'}", target="knd")
    assert task.about["source"] == "hf:one"


def test_a_broken_picture_in_memory_is_told_by_its_number(tmp_path: Path) -> None:
    need("datasets")
    import datasets

    (tmp_path / "1.png").parent.mkdir(exist_ok=True)
    paint(0, 0).save(tmp_path / "1.png")
    good = (tmp_path / "1.png").read_bytes()
    rows = [{"img": {"bytes": good, "path": None}, "label": i % 3} for i in range(30)]
    rows[7]["img"] = {"bytes": b"no picture", "path": None}
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])}
    datasets.Dataset.from_list(rows, datasets.Features(features)).save_to_disk(tmp_path / "one")
    with pytest.raises(UsageError) as caught:
        vision.task(None, net, f"hf:{tmp_path / 'one'}")
    assert str(caught.value) == (
        f"picture 7 of hf:{tmp_path / 'one'} (train), column 'img', cannot be read as a picture "
        "(cannot identify image file); mend or remove it"
    )


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    task = vision.task(None, net(10, 1), "sklearn:digits")
    x, y = rows(task.train)
    raw = load_digits()
    there = {(im.tobytes(), int(k)) for im, k in zip(raw.images, raw.target, strict=True)}
    ours = (x.double() / 255 * 16).round().numpy()[:, 0]
    assert all((im.tobytes(), k) in there for im, k in zip(ours, y.tolist(), strict=True))
    assert task.readers["student"](x[:2]).shape == (2, 1, 8, 8)  # a module of one's own: as it is


def test_values_of_python(folder: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    x, y = torch.rand(40, 3, 16, 16), torch.arange(40) % 3
    of_tensors = vision.task(None, net, (x, y))
    assert torch.equal(rows(of_tensors.train)[1].bincount(), torch.tensor([10, 9, 9]))
    of_dict = vision.task(None, net, {"train": (x, y), "test": (x[:6], y[:6])})
    assert torch.equal(rows(of_dict.test)[0], x[:6])
    of_set = vision.task(None, net, ImageFolder(str(folder)))
    assert of_set.about["names"] == list(NAMES)
    picture, label = of_set.train[5]
    assert picture.float().mean((1, 2)).argmax() == label
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "def data():\n    g = torch.Generator().manual_seed(0)\n"
        "    return torch.rand(40, 3, 16, 16, generator=g), torch.arange(40) % 3\n"
        "class Small(nn.Sequential):\n    def __init__(self, classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(768, classes))\n"
        "ready = Small(3)\n"
        "def five(classes=5):\n    return Small(classes)\n"
    )
    task = vision.task(f"{file}:ready", f"{file}:Small", f"{file}:data", budget=BUDGET)
    assert isinstance(task.the_teacher(), Frozen)
    assert task.name == "Small-data"
    assert limbeck.run("kd", task).facts["stages"][-1]["steps"] == 2
    for words, why in (
        ("Small", "it has no weights"),
        ("five", "it has 5 classes and the data have 3"),
    ):
        teacher = vision.task(f"{file}:{words}", net, f"{file}:data").teacher
        assert isinstance(teacher, Untrained)
        assert teacher.why == why
    asked = vision.task(f"{file}:ready", net, f"{file}:data", pretrained=False)
    assert asked.teacher.why == "it was said not to be trained yet"


def test_normalised_floats_are_left_alone() -> None:
    x, y = torch.randn(40, 3, 16, 16), torch.arange(40) % 3
    task = vision.task(net(), "timm:test_resnet", (x, y))
    assert torch.equal(task.readers["teacher"](x), x)
    assert task.about["inputs"]["kind"] == "tensors"
    assert "normalised already" in " ".join(task.notes)


# --- models --------------------------------------------------------------------------------------


def vit(where: Path, classes: int, names: tuple[str, ...] = ()) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=classes,
    )  # fmt: skip
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    with globals_kept():
        torch.manual_seed(0)
        model = ViTForImageClassification(config).eval()
    model.save_pretrained(where)
    ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(where)
    return model


def test_a_pretrained_teacher_sees_what_its_own_processor_shows(
    folder: Path, tmp_path: Path
) -> None:
    need("transformers")
    from transformers import AutoImageProcessor

    model = vit(tmp_path / "vit", 3)
    task = vision.task(f"hf:{tmp_path / 'vit'}", "timm:test_resnet", str(folder), budget=BUDGET)
    teacher = task.the_teacher()
    assert isinstance(teacher, Frozen)
    x = rows(task.test)[0]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "vit")
    theirs = processor(images=list(x), return_tensors="pt")["pixel_values"]
    ours = task.readers["teacher"](x)
    assert set(ours) == {"pixel_values"}
    apart = (ours["pixel_values"] - theirs).abs()  # theirs are rounded to bytes on the way
    assert apart.max() < 0.05
    assert apart.mean() < 0.003
    with torch.no_grad():
        ours_logits = teacher.module.eval()(**ours).logits
        torch.testing.assert_close(ours_logits, model(**ours).logits)
    facts = limbeck.run("kd", task).facts
    assert facts["teacher"] == pytest.approx(
        float((ours_logits.argmax(1) == rows(task.test)[1]).double().mean())
    )


def test_a_head_for_other_classes_is_replaced_and_the_body_kept(
    folder: Path, tmp_path: Path
) -> None:
    need("transformers")
    model = vit(tmp_path / "vit", 5)
    task = vision.task(f"hf:{tmp_path / 'vit'}", net, str(folder))
    assert isinstance(task.teacher, Untrained)
    assert task.teacher.why == "it has 5 classes and the data have 3"
    made, there = task.teacher.new().state_dict(), model.state_dict()
    differ = {k for k in made if made[k].shape != there[k].shape or not made[k].equal(there[k])}
    assert differ == {"classifier.weight", "classifier.bias"} - {
        k for k in ("classifier.bias",) if made[k].shape == there[k].shape
    }
    assert made["classifier.weight"].shape == (3, 16)
    assert "new head" in " ".join(task.notes)
    torch.manual_seed(77)  # the same teacher whatever was drawn before
    again = vision.task(f"hf:{tmp_path / 'vit'}", net, str(folder))
    assert task_digests(task) == task_digests(again)


def test_labels_are_numbered_as_the_teacher_knows_them(folder: Path, tmp_path: Path) -> None:
    need("transformers")
    order = (NAMES[2], NAMES[0], NAMES[1])
    vit(tmp_path / "vit", 3, order)
    task = vision.task(f"hf:{tmp_path / 'vit'}", net, str(folder))
    assert task.about["names"] == list(order)
    x, y = rows(task.train)
    brightest = x.float().mean((2, 3)).argmax(1)  # numbered by NAMES
    assert [order[k] for k in y.tolist()] == [NAMES[k] for k in brightest.tolist()]


@pytest.mark.parametrize("words", ["timm:test_resnet", "torchvision:shufflenet_v2_x0_5"])
def test_without_a_connection_the_teacher_is_trained_first(
    folder: Path, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(hub.socket, "create_connection", none)
    monkeypatch.setattr("urllib.request.urlopen", none)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    before = torch.get_rng_state()
    task = vision.task(words, "timm:test_resnet", str(folder))
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(task.teacher, Untrained)
    assert task.teacher.why.startswith("its pretrained weights cannot be had (")
    assert task.about["inputs"]["size"] == [3, 32, 32]
    asked = vision.task(words, "timm:test_resnet", str(folder), pretrained=False)
    assert asked.teacher.why == "its pretrained weights were not asked for"


def test_weights_of_a_file(folder: Path, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    words = f"timm:test_resnet@{tmp_path / 'w.safetensors'}"
    task = vision.task(words, words, str(folder))
    for module in (task.the_teacher().module, task.new_student(0)):
        state = module.state_dict()
        assert all(state[k].equal(v) for k, v in model.state_dict().items())
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(),
              tmp_path / "w.safetensors")  # fmt: skip
    with pytest.raises(UsageError, match="has 7 classes, the data have 3; give weights"):
        vision.task(words, net, str(folder))


def test_a_fixed_architecture_is_made_for_the_pictures(folder: Path) -> None:
    task = vision.task(None, "timm:test_vit", str(folder))
    assert task.about["inputs"]["size"] == [3, 32, 32]
    student = task.new_student(0)
    assert student(task.readers["student"](rows(task.test)[0])).shape[1] == 3
    one, two = task.new_student(1).state_dict(), task.new_student(1).state_dict()
    assert all(one[k].equal(two[k]) for k in one)


def test_the_student_of_a_run_is_shown_what_it_was_shown_there(
    folder: Path, tmp_path: Path
) -> None:
    first = vision.task(None, "timm:test_resnet", str(folder), budget=BUDGET)
    run = tmp_path / "run"
    result = limbeck.run("kd(kd=0, label=1)", first, out=run)
    told = json.loads((run / "run.json").read_text())
    told["request"] = {"own": {"student": "timm:test_resnet"}}
    told["about"] = dict(first.about)
    (run / "run.json").write_text(json.dumps(told))
    task = vision.task(str(run), net, str(folder))
    teacher = task.the_teacher()
    assert isinstance(teacher, Frozen)
    x = rows(task.test)[0]
    assert task.readers["teacher"] == first.readers["student"]
    with torch.no_grad():
        one = teacher.module.eval()(task.readers["teacher"](x))
        two = result.model.eval()(first.readers["student"](x))
    torch.testing.assert_close(one, two)


def test_no_teacher_and_one_that_only_answers(folder: Path) -> None:
    assert isinstance(vision.task("none", net, str(folder)).the_teacher(), Nobody)
    box = BlackBox(lambda x: torch.zeros(len(x), dtype=torch.int64))
    task = vision.task(box, net, str(folder))
    assert task.teacher is box
    x = rows(task.test)[0]
    assert torch.equal(task.readers["teacher"](x), x.float() / 255)


def test_a_served_teacher_is_sent_what_it_is_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def served(
        url: str, sample: Tensor, *, names: tuple[str, ...], requests: int | None
    ) -> BlackBox:
        assert requests == 7
        sent.append((url, sample.shape, float(sample.max()) <= 1, names))
        return BlackBox(lambda x: torch.zeros(len(x)))

    monkeypatch.setattr("limbeck.core.remote.served", served)
    task = vision.task("https://host/predict", net, str(folder), requests=7)
    assert sent == [("https://host/predict", (1, 3, 24, 24), True, NAMES)]
    assert isinstance(task.teacher, BlackBox)


def test_a_run_end_to_end_and_again_to_the_same_bits(folder: Path) -> None:
    def go() -> Task:
        return vision.task(
            "timm:test_resnet", "timm:test_vit", str(folder),
            augment="crop,flip", pretrained=False, budget=BUDGET,
        )  # fmt: skip

    assert task_digests(go()) == task_digests(go())
    one, two = (limbeck.run("kd", go()) for _ in range(2))
    assert [s["stage"] for s in one.facts["stages"]][-1] == "fit"
    assert one.facts["score_of"] == "test"
    weights = two.model.state_dict()
    assert all(v.equal(weights[k]) for k, v in one.model.state_dict().items())


def test_a_teacher_that_was_trained_here_is_read_the_same_when_its_file_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learned on the data's own mean and deviation, not on those of its library."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "kept"))

    def of(teacher: str) -> Task:
        return vision.task(teacher, net, str(folder), pretrained=False, budget=BUDGET)

    first = of("timm:test_resnet")
    limbeck.run("kd", first, out=tmp_path / "run")
    second = of(f"timm:test_resnet@{tmp_path / 'run' / 'teacher.safetensors'}")
    assert isinstance(second.the_teacher(), Frozen)
    x = first.train[0][:4]
    assert torch.equal(second.readers["teacher"](x), first.readers["teacher"](x))
    assert limbeck.run("kd", second).facts["teacher"] == pytest.approx(
        limbeck.run("kd", first).facts["teacher"]
    )


# --- sentences -----------------------------------------------------------------------------------


def test_faults_of_folders_are_named(tmp_path: Path) -> None:
    def said(root: Path) -> str:
        with pytest.raises(UsageError) as caught:
            vision.task(None, net, str(root))
        return str(caught.value)

    (tmp_path / "flat").mkdir()
    assert "holds no pictures and no folders" in said(tmp_path / "flat")
    paint(0, 0).save(tmp_path / "flat" / "1.png")
    assert "holds pictures and no folders" in said(tmp_path / "flat")
    lone = fill(tmp_path / "lone", 3, NAMES[:1])
    assert "has one class, 'ape'" in said(lone)
    (lone / "bee").mkdir()
    assert f"the folder {lone / 'bee'} holds no pictures" in said(lone)
    whole = fill(tmp_path / "whole", 70)
    (whole / "bee" / "01.png").write_bytes(b"no picture")
    text = said(whole)
    assert text.startswith(f"{whole / 'bee' / '01.png'} cannot be read as a picture")
    cut = (whole / "cow" / "03.png").read_bytes()[:-900]
    (whole / "cow" / "03.png").write_bytes(cut)
    (whole / "bee" / "01.png").unlink()
    assert said(whole).startswith(f"{whole / 'cow' / '03.png'} cannot be read as a picture (")


X, Y = torch.rand(20, 3, 8, 8), torch.arange(20) % 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"teacher": lambda: net(7)}, "gives 7 classes and the data have 2"),
        ({"student": lambda: net(5)}, "gives 5 classes and the data have 2"),
        ({"teacher": "timm:resnet19"}, "timm has no model 'resnet19'; did you mean 'resnet18'"),
        ({"teacher": "timm:resnet18.x"}, "timm has no weights 'resnet18.x'"),
        ({"student": "torchvision:resnet19"}, "no classification model 'resnet19'"),
        ({"teacher": 3}, "the teacher is a int; give words"),
        ({"student": None}, "the student is a NoneType; give words"),
        ({"augment": "flips"}, "no augmentation is called 'flips'; did you mean 'flip'"),
        ({"target": "y"}, "target is 'y', but data is a tuple"),
        ({"data": (X * 255, Y)}, r"floats from 0 to 25\d.*; give bytes"),
        ({"data": (X.long(), Y)}, "are int64; give bytes"),
        ({"data": (X[:, :2], Y)}, r"of shape \(20, 2, 8, 8\)"),
        ({"data": (X, Y[:3])}, "one whole number for each picture"),
        ({"data": (X, Y * 3 - 1)}, "the labels of 'train' run from -1 to 2"),
        ({"data": (X, 0 * Y)}, "has one class, '0'"),
        ({"data": {"test": (X, Y)}}, "give one with 'train'"),
        ({"data": "sklearn:iris"}, "sklearn:iris, which holds no pictures"),
        ({"data": {"train": (X, Y), "test": (X - 0.5, Y)}}, "bring all to one range"),
        ({"student": nn.Linear(3, 2)}, "does not take pictures of 8 x 8 pixels"),
    ],
)
def test_a_mistake_is_one_sentence(given: dict, sentence: str) -> None:
    whole = {"teacher": None, "student": lambda: net(2), "data": (X, Y), **given}
    with pytest.raises(UsageError, match=sentence) as caught:
        vision.task(**whole)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Missing, match=r"this needs timm; install it with: pip install 'limbeck\["):
        vision.task(None, "timm:test_resnet", str(folder))


def test_the_room_is_listed_without_torch() -> None:
    ask = "import sys, limbeck.vision; assert 'task' in limbeck.vision.__all__; "
    ask += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0
    assert callable(vision.task)
    with pytest.raises(AttributeError, match="no attribute 'tsak'"):
        vision.tsak  # noqa: B018
