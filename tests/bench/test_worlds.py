"""Worlds: fixed data, models with their taps, teachers that are trained once and kept."""

import gzip
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from limbeck.bench import worlds
from limbeck.bench.worlds import _families, _models, _teachers, fashion, protected, shapes
from limbeck.bench.worlds._build import stratified
from limbeck.core.crowd import Crowd
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen, Nobody
from limbeck.errors import Missing, UsageError

WORLDS = ("blobs", "digits", "fashion", "protected", "shapes")
TEXTS = ("charlm", "glosscls", "markov", "masklm", "smolkd", "transduce")  # see test_text_worlds.py
OTHERS = (
    "affect",
    "bags",
    "biased",
    "multilabel",
    "pairs",
    "renewed",
)  # each has a test file of its own
needs_fashion = pytest.mark.skipif(
    not fashion.DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
each_world = pytest.mark.parametrize(
    "world", [pytest.param(w, marks=needs_fashion if w == "fashion" else ()) for w in WORLDS]
)


def tiny(spec: str) -> Task:
    return worlds.make(spec, tiny=True)


def teacher_of(task: Task) -> nn.Module:
    assert isinstance(task.teacher, Frozen)
    return task.teacher.module


def tensors(task: Task) -> list[torch.Tensor]:
    return [*task.train, *task.valid, *task.test, task.data["unlabelled"]]


def fit(task: Task, seed: int) -> nn.Module:
    """Train a student from scratch within the task's budget, by a loop of its own."""
    model, (x, y) = task.new_student(seed), task.train
    optimiser = task.budget.optimiser.make(list(model.parameters()))
    each = len(x) // task.budget.batch
    steps = task.budget.total(each)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(x), generator=rng) for _ in range(-(-steps // each))]
    rows = [r for o in orders for r in o.split(task.budget.batch)[:each]]
    for r in rows[:steps]:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[r]), y[r]).backward()
        optimiser.step()
        schedule.step()
    return model


def score(model: nn.Module, task: Task) -> float:
    return _teachers.accuracy(model, *task.test)


# --- data ----------------------------------------------------------------------------------------


def test_names() -> None:
    assert worlds.names() == tuple(sorted((*WORLDS, *TEXTS, *OTHERS)))


@each_world
def test_data_are_fixed_whatever_the_seed(world: str) -> None:
    one, two = worlds.make(world, seed=1, tiny=True), worlds.make(world, seed=2, tiny=True)
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))
    other = worlds.make(f"{world}(data_seed=1, teacher='none')", tiny=True)
    assert not torch.equal(one.train[0], other.train[0])


@each_world
def test_a_task_can_be_written_to_without_harm_to_the_next(world: str) -> None:
    task = tiny(f"{world}(teacher='none')")
    for tensor in tensors(task):
        tensor.zero_()
    assert all(t.any() for t in tensors(tiny(f"{world}(teacher='none')")))


@each_world
def test_shapes_types_and_scale(world: str) -> None:
    task = tiny(world)
    classes = len(task.data["names"])
    assert task.classes == classes
    for (x, y), n in ((task.train, 192), (task.valid, 64), (task.test, 64)):
        assert (x.dtype, y.dtype, x.device.type) == (torch.float32, torch.int64, "cpu")
        assert len(x) == len(y) == n
        assert set(y.tolist()) == set(range(classes))  # every class is everywhere
        assert x.isfinite().all()
    x = task.train[0]
    assert abs(float(x.mean())) < 0.3
    assert 0.7 < float(x.std()) < 1.3
    assert task.data["unlabelled"].shape[1:] == x.shape[1:]
    assert (task.budget.steps, task.budget.batch % 2) == (24, 0)


@each_world
def test_no_picture_is_in_two_sets(world: str) -> None:
    task = tiny(f"{world}(teacher='none')")
    rows = torch.cat([x.flatten(1) for x in tensors(task) if x.dtype == torch.float32])
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_digits_keep_every_picture_once() -> None:
    task = worlds.make("digits(teacher='none', n=600)")
    assert [len(x) for x in tensors(task)][::2] == [600, 200, 597, 400]
    assert "unlabelled" not in worlds.make("digits(teacher='none', n=1000)").data


def test_stratified_has_every_class_in_every_start() -> None:
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified(y, "test")
    assert sorted(order.tolist()) == list(range(100))
    for n in (10, 20, 50, 90):
        counts = torch.bincount(y[order[:n]], minlength=3)
        assert (counts - n * torch.tensor([0.6, 0.3, 0.1])).abs().max() <= 1
    assert not torch.equal(order, stratified(y, "other"))


@pytest.mark.parametrize("world", ["blobs", "protected", "shapes"])
def test_a_sample_does_not_depend_on_how_many_there_are(world: str) -> None:
    few = worlds.make(f"{world}(teacher='none', n=100)", tiny=True).train
    many = worlds.make(f"{world}(teacher='none', n=1500)", tiny=True).train
    assert all(torch.equal(a, b[:100]) for a, b in zip(few, many, strict=True))


# --- long tails and wrong labels -----------------------------------------------------------------

CLOTHES = "fashion(size='14x14', teacher='none', n=4000"
with_tails = pytest.mark.parametrize(
    ("start", "most"),
    [("digits(teacher='none', n=900", 87), pytest.param(CLOTHES, 400, marks=needs_fashion)],
)


@with_tails
@pytest.mark.parametrize("tail", [1.5, 20, 50])
def test_a_long_tail_thins_classes_by_even_ratios(start: str, most: int, tail: float) -> None:
    whole, thin = (worlds.make(f"{start}{more})") for more in ("", f", tail={tail}"))
    counts = thin.train[1].bincount(minlength=10)
    ratios = [most * tail ** (-k / 9) for k in range(10)]
    assert sorted(counts.tolist(), reverse=True) == [round(each) for each in ratios]
    assert whole.train[1].bincount().min() == most
    # What is left is of the whole world, with its own labels, and in its order; the rest is as was.
    pictures = {bytes(x.numpy()): i for i, x in enumerate(whole.train[0])}
    at = [pictures[bytes(x.numpy())] for x in thin.train[0]]
    assert at == sorted(at)
    assert torch.equal(whole.train[1][at], thin.train[1])
    assert all(map(torch.equal, tensors(whole)[2:], tensors(thin)[2:]))
    assert "clean" not in thin.data


def test_the_order_of_classes_is_of_the_data_seed_alone() -> None:
    def order(more: str) -> list[int]:
        counts = worlds.make(f"digits(teacher='none', n=1000, {more})").train[1].bincount()
        return counts.argsort(descending=True).tolist()

    assert order("tail=20") == order("tail=50") != list(range(10))
    assert order("tail=20, data_seed=1") != order("tail=20")


@with_tails
@pytest.mark.parametrize("noise", [0.2, 0.4])
def test_so_many_labels_are_wrong_and_the_truth_is_kept(
    start: str, most: int, noise: float
) -> None:
    whole, task = (worlds.make(f"{start}{more})") for more in ("", f", noise={noise}"))
    given, clean = task.train[1], task.data["clean"]
    assert torch.equal(task.train[0], whole.train[0])
    assert torch.equal(clean, whole.train[1])
    wrong = given != clean
    assert int(wrong.sum()) == noise * len(given)
    # Each pair of classes about as often, as chance has it: within 4.5 standard deviations.
    pairs = torch.zeros(10, 10).index_put((clean, given), torch.tensor(1.0), accumulate=True)
    means = (clean.bincount() * noise / 9)[:, None].expand(10, 10)
    off = ~torch.eye(10, dtype=torch.bool)
    assert ((pairs - means) / means.sqrt())[off].abs().max() < 4.5
    assert all(map(torch.equal, tensors(whole)[2:], tensors(task)[2:]))


def test_more_noise_adds_to_what_is_wrong() -> None:
    few, many, other = (
        worlds.make(f"digits(teacher='none', {more})")
        for more in ("noise=0.1", "noise=0.3", "noise=0.1, data_seed=1")
    )
    wrong = few.train[1] != few.data["clean"]
    assert torch.equal(few.train[1][wrong], many.train[1][wrong])
    assert not torch.equal(wrong, other.train[1] != other.data["clean"])


def test_a_tail_and_noise_go_together() -> None:
    tail = worlds.make("digits(teacher='none', n=1000, tail=20)")
    both = worlds.make("digits(teacher='none', n=1000, tail=20, noise=0.25)")
    assert torch.equal(both.data["clean"], tail.train[1])
    assert torch.equal(both.train[0], tail.train[0])
    assert int((both.train[1] != tail.train[1]).sum()) == round(0.25 * len(tail.train[1]))


def test_blobs_are_too_much_for_a_linear_model() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    task = worlds.make("blobs(teacher='none')")
    linear = LinearDiscriminantAnalysis().fit(*(t.numpy() for t in task.train))
    assert linear.score(*(t.numpy() for t in task.test)) < 0.7  # a trained MLP reaches 0.95


def test_protected_labels_favour_a_group_that_merits_no_more() -> None:
    x, y = protected.draw(20_000, 0, "train")
    group = x[:, -1] > 0
    assert set(x[:, -1].tolist()) == {-1.0, 1.0}
    merit = x[:, :6].mean(1)
    assert abs(float(merit[group].mean() - merit[~group].mean())) < 0.05
    hints = x[:, 6:9].mean(1) > 0
    assert float((hints == group).float().mean()) > 0.9
    # merit + noise is N(0, 1.25); a label is granted above 0.75 - 1.5 or above 0.75.
    share = torch.distributions.Normal(0, 1.25**0.5).cdf(torch.tensor(0.75))
    assert float(y[group].float().mean()) == pytest.approx(float(share), abs=0.02)
    assert float(y[~group].float().mean()) == pytest.approx(1 - float(share), abs=0.02)


@pytest.mark.parametrize("name", shapes.NAMES)
def test_a_shape_covers_its_middle_and_not_the_corners(name: str) -> None:
    axis = torch.linspace(-1.2, 1.2, 401)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = shapes._inside(name, u, v) > 0
    assert not inside[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert bool(inside[200, 200]) == (name not in ("ring", "moon"))
    # The areas by their formulas, where there is a simple one.
    cell = float(axis[1] - axis[0]) ** 2
    area = {"circle": torch.pi * 0.81, "square": 2.25, "bar": 2 * 0.7, "cross": 4 * 0.54 - 0.54**2}
    if name in area:
        assert float(inside.sum()) * cell == pytest.approx(area[name], rel=0.02)


# --- Fashion-MNIST's files -----------------------------------------------------------------------


def idx(*shape: int) -> bytes:
    """Write an IDX file of bytes by hand."""
    count = 1
    for size in shape:
        count *= size
    head = bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", size) for size in shape)
    return head + bytes(i % 256 for i in range(count))


@pytest.mark.parametrize("packed", [False, True])
def test_idx_is_read(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(idx(2, 3, 4)) if packed else idx(2, 3, 4))
    assert torch.equal(fashion.read_idx(path), torch.arange(24, dtype=torch.uint8).view(2, 3, 4))


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", idx(2, 3)[:-1], idx(2, 3) + b"x", b"\0\0\x0d" + idx(2)[3:], b"GIF89a..."],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match=r"x is damaged or is not an IDX file"):
        fashion.read_idx(tmp_path / "x")
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(99))[:-9])
    with pytest.raises(UsageError, match=r"could not read .*x\.gz"):
        fashion.read_idx(tmp_path / "x.gz")


def test_an_own_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match="does not hold Fashion-MNIST; it needs the files train-"):
        worlds.make(f"fashion(folder={str(tmp_path)!r})")
    monkeypatch.setattr(fashion, "_VALID", 64)
    monkeypatch.setattr(fashion, "_POOL", 320)
    for (pictures, labels), n in zip(fashion._FILES.values(), (384, 64), strict=True):
        (tmp_path / pictures).write_bytes(idx(n, 28, 28))
        # Each ten labels 0 to 9 in turn.
        head = bytes([0, 0, 8, 1]) + struct.pack(">I", n)
        (tmp_path / f"{labels}.gz").write_bytes(
            gzip.compress(head + bytes(i % 10 for i in range(n)))
        )
    task = worlds.make(f"fashion(folder={str(tmp_path)!r}, teacher='none', n=300, size='14x14')")
    assert task.train[0].shape == (300, 1, 14, 14)
    assert task.train[1].bincount().tolist() == pytest.approx([30] * 10, abs=1)
    assert len(task.data["unlabelled"]) == 20


@needs_fashion
def test_fashion_14_is_the_mean_of_four_pixels() -> None:
    big = worlds.make("fashion(size='28x28', teacher='none', n=100)", tiny=True)
    small = worlds.make("fashion(teacher='none', n=100)", tiny=True)
    assert big.test[0].shape == (64, 1, 28, 28)
    mean = big.test[0].unflatten(2, (14, 2)).unflatten(4, (14, 2)).mean((3, 5))
    # Both are scaled by their own mean and deviation: the same up to a line.
    a, b = mean.flatten(), small.test[0].flatten()
    assert float(torch.corrcoef(torch.stack((a, b)))[0, 1]) == pytest.approx(1, abs=1e-5)


def test_no_fashion_anywhere_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "torchvision.datasets", None)
    with pytest.raises(Missing, match=r"not on this machine, and torchvision.*not installed"):
        worlds.make("fashion")


# --- models --------------------------------------------------------------------------------------

IN_SHAPES = [(1, 8, 8), (1, 14, 14), (1, 28, 28), (3, 16, 16), (3, 24, 24)]


@pytest.mark.parametrize("family", _families.SIZES)
def test_taps_are_where_the_model_says(family: str) -> None:
    for in_shape in [(16,), *IN_SHAPES] if family.startswith("mlp") else IN_SHAPES:
        model = _families.factory(family, in_shape, 7)().eval()
        taps = _families.taps_of(model)
        assert set(taps) == {"mid", "feature", "embedding", "blocks"}
        seen: dict[str, torch.Tensor] = {}
        for path in {taps["mid"], taps["feature"], *taps["blocks"]}:
            keep = partial(seen.__setitem__, path)
            model.get_submodule(path).register_forward_hook(lambda m, i, o, keep=keep: keep(o))
        keep = partial(seen.__setitem__, "head:in")
        model.head.register_forward_pre_hook(lambda m, i, keep=keep: keep(i[0]))
        logits = model(torch.randn(5, *in_shape))
        assert logits.shape == (5, 7)
        assert all(len(value) == 5 for value in seen.values())
        mid, feature = seen[taps["mid"]], seen[taps["feature"]]
        assert mid.dim() == feature.dim() == (2 if family.startswith("mlp") else 4)
        embedding = seen[taps["embedding"]]
        assert torch.equal(model.head(embedding), logits)
        if isinstance(model, (_models.CNN, _models.ResNet)):
            torch.testing.assert_close(feature.mean((2, 3)), embedding)
        inplace = [m for m in model.modules() if getattr(m, "inplace", False)]
        assert not inplace


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_modes_hooks_and_grad_make_no_difference_to_the_bits(family: str) -> None:
    torch.manual_seed(0)
    model, x = _families.factory(family, (1, 8, 8), 10)().eval(), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        bare = model(x)
        model.get_submodule("body.0").register_forward_hook(lambda m, i, out: None)
        assert torch.equal(bare, model(x))
    assert torch.equal(bare, model(x))
    if family == "vit":  # no BatchNorm
        assert torch.equal(bare, model.train()(x))
    # It can be differentiated twice.
    (grad,) = torch.autograd.grad(model(x).square().sum(), [model.head.weight], create_graph=True)
    assert torch.autograd.grad(grad.sum(), [next(model.parameters())])[0].any()


def test_sizes_grow_within_a_family() -> None:
    size = {n: _families.blueprint(_families.factory(n, (1, 8, 8), 10))[1] for n in _families.SIZES}
    assert size["cnn-tiny"] == 286
    for kind in ("mlp", "cnn", "resnet", "vit"):
        sizes = [n for name, n in size.items() if name.partition("-")[0] == kind]
        assert sizes == sorted(sizes)
        assert len(sizes) >= 3


@pytest.mark.parametrize("student", ["cnn-tiny", "mlp", "resnet-small", "vit-small", "deep-thin"])
def test_space_and_assistants(student: str) -> None:
    task = tiny(f"digits(student={student!r})")
    x, path = task.test[0][:2], task.taps["feature"][1]
    assert len(task.data["space"]) == 12
    for make in task.data["space"].values():
        model = make()
        assert isinstance(model.head, nn.Linear)
        assert model.taps["feature"] == path
        assert model(x).shape == (2, 10)
    models = [make() for make in task.data["assistants"].values()]
    models = [teacher_of(task), *models, task.new_student(0)]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert sizes == sorted(sizes, reverse=True) or len(sizes) == 2


def test_takd_has_assistants() -> None:
    assert list(worlds.make("digits", tiny=True).data["assistants"]) == ["cnn", "cnn-small"]


# --- teachers ------------------------------------------------------------------------------------


@each_world
def test_taps_name_modules_of_both_sides(world: str) -> None:
    task = tiny(world)
    for paths in task.taps.values():
        for model, path in zip((teacher_of(task), task.new_student(0)), paths, strict=True):
            for name in [path] if isinstance(path, str) else path:
                model.get_submodule(name.partition(":")[0])


def test_no_teacher() -> None:
    task = tiny("digits(teacher='none')")
    assert isinstance(task.teacher, Nobody)
    assert {pair[0] for pair in task.taps.values()} == {None}
    assert task.data["assistants"] == {}


def test_a_crowd_of_families_and_of_seeds() -> None:
    task = tiny("digits(teacher='cnn+vit-small')")
    assert isinstance(task.teacher, Crowd)
    kinds = [type(t.module) for t in task.teacher.teachers]
    assert kinds == [_models.CNN, _models.ViT]
    assert task.taps["mid"] == (("body.1", "mid_map"), "body.1")
    twins = tiny("digits(teacher='cnn+cnn')").teacher.teachers
    assert not torch.equal(*(t.module.head.weight for t in twins))
    assert torch.equal(twins[0].module.head.weight, task.teacher.teachers[0].module.head.weight)


def cached(folder: Path) -> Path:
    (path,) = (folder / "teachers").iterdir()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_teacher_is_trained_once_and_the_same_again(cache: Path) -> None:
    state = torch.get_rng_state()
    task = tiny("digits")
    assert torch.equal(state, torch.get_rng_state())
    path = cached(cache)
    assert path.name.startswith("digits-cnn-medium-")
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert float(told["accuracy"]) == pytest.approx(score(teacher_of(task), task), abs=1e-6)
    kept = path.stat()
    good = teacher_of(task).state_dict()
    for again in (tiny("digits"), path.unlink() or tiny("digits")):  # from the cache, anew
        state = teacher_of(again).state_dict()
        assert all(torch.equal(good[name], state[name]) for name in good)
    assert kept.st_mtime_ns != cached(cache).stat().st_mtime_ns
    assert not teacher_of(task).training


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty"])
def test_a_damaged_teacher_is_trained_again(cache: Path, damage: str) -> None:
    good = teacher_of(tiny("digits")).state_dict()
    path = cached(cache)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes({"cut": raw[:-9], "flipped": raw, "other": b"{" * 99, "empty": b""}[damage])
    again = teacher_of(tiny("digits")).state_dict()
    assert all(torch.equal(good[name], again[name]) for name in good)
    with safe_open(cached(cache), "pt") as file:
        assert "accuracy" in file.metadata()


def test_other_data_or_recipe_have_another_teacher(cache: Path) -> None:
    tiny("digits")
    tiny("digits(n=200)")
    tiny("digits(data_seed=1)")
    assert len(list((cache / "teachers").iterdir())) == 3


def test_without_a_writable_cache_all_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file"))
    task = tiny("blobs")
    assert "not kept for later" in caplog.text
    assert score(teacher_of(task), task) > 0.3


# --- how well they do ----------------------------------------------------------------------------


@each_world
def test_a_tiny_teacher_beats_chance_and_a_tiny_student_learns(world: str) -> None:
    task = tiny(world)
    chance = 1 / task.classes
    assert score(teacher_of(task), task) > chance + 0.2
    gains = [score(fit(task, s), task) - score(task.new_student(s), task) for s in range(3)]
    assert sum(gains) / 3 > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "gap"),
    [
        ("blobs", 0.04),
        ("digits", 0.02),
        ("digits(student='cnn-tiny')", 0.05),
        ("digits(student='mlp')", 0.01),
        ("digits(teacher='resnet-large', student='vit')", 0.01),
        ("digits(teacher='vit-large', student='cnn-tiny')", 0.03),
        pytest.param("fashion(size='14x14')", 0.02, marks=needs_fashion),
        ("shapes", 0.04),
    ],
)
def test_a_student_from_scratch_is_well_below_its_teacher(spec: str, gap: float) -> None:
    task = worlds.make(spec)
    scratch = sum(score(fit(task, seed), task) for seed in range(3)) / 3
    assert scratch < score(teacher_of(task), task) - gap
    assert scratch > 0.5


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digit", "no world is called 'digit'; did you mean 'digits'"),
        (
            "digits(teatcher='cnn')",
            "world 'digits' has no option 'teatcher'; did you mean 'teacher'",
        ),
        ("digits(student='ccn')", "no model family is called 'ccn'; did you mean 'cnn'"),
        ("digits(teacher='cnn+resnt')", "no model family is called 'resnt'; did you mean 'resnet'"),
        ("fashion(size='28x82')", "fashion has no size '28x82'; did you mean '28x28'"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(spec: str, says: str) -> None:
    with pytest.raises(Missing) as caught:
        worlds.make(spec, tiny=True)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digits(n=5000)", "n is 5000; give a whole number from 64 to 1000"),
        ("digits(n='all')", "n is 'all'; give a whole number"),
        ("digits(student=3)", "the student is 3; give the name of a model family"),
        ("digits(tail=0.5)", "tail is 0.5; give a number from 1 to 10000"),
        ("digits(noise=1.5)", "noise is 1.5; give a number from 0 to 1"),
        ("digits(noise='some')", "noise is 'some'; give a number"),
        ("digits(tail=100)", "tail is 100, and of 18 samples a class none would be left of the"),
        ("blobs(student='cnn')", "'cnn' takes pictures, and the samples here are vectors of 16"),
        ("shapes(side=30)", "side is 30; give a multiple of 4"),
        ("digits('cnn')", "values without a name"),
    ],
)
def test_a_value_that_cannot_be_is_refused(spec: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        worlds.make(spec, tiny=True)
    assert says in str(caught.value)


def test_every_world_is_on_its_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "worlds.md").read_text("utf-8")
    assert [name for name in worlds.names() if f"**`{name}`**" not in page] == []
