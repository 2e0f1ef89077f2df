"""What models are made of, and where entries of a view lie in them."""

import pytest
import torch
from torch import Tensor, nn

from limbeck.bench.worlds import make
from limbeck.core import layout
from limbeck.core.crowd import Crowd
from limbeck.core.data import reader_of
from limbeck.core.evaluate import evaluating
from limbeck.core.taps import Taps
from limbeck.core.task import Task
from limbeck.core.untrained import Untrained
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("layout")


def conv(here: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(here, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


class Maps(nn.Module):
    """Sizes 8, 8, 4, 2 of an 8 x 8 picture."""

    def __init__(self, width: int = 4, first: int = 1) -> None:
        super().__init__()
        self.stem = conv(1, width, first)
        self.one = conv(width, width, 1)
        self.two = nn.Sequential(conv(width, width, 1), conv(width, 2 * width, 2))
        self.three = nn.Sequential(conv(2 * width, 4 * width, 2), conv(4 * width, 4 * width, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.drop = nn.Dropout()
        self.head = nn.Linear(4 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.three(self.two(self.one(self.stem(x))))
        return self.head(self.drop(self.flat(self.pool(x))))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        scores = self.norm1(x) @ self.norm2(x).mT
        return x + self.act(self.mix(scores.softmax(-1) @ x))


class Tokens(nn.Module):
    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, 2)
        self.blocks = nn.Sequential(*[Block(8) for _ in range(blocks)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        return self.head(self.norm(self.blocks(x))[:, 0])


class Vectors(nn.Module):
    """Its activations are functions, so that no module gives what the layers take."""

    def __init__(self, here: int = 64, hidden: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(here if i == 0 else 8, 8) for i in range(hidden)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = Maps(), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.inner.stem(x).permute(0, 2, 3, 1))
        return self.head(x.mean((1, 2)))


class Named(nn.Module):
    """Gives entries by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.body(x.flatten(1))
        return {"logits": self.head(z.relu()), "embedding": z, "mid": z}


PICTURES = (torch.randn(12, 1, 8, 8), torch.arange(12) % 3)


def task(teacher: object, student: nn.Module, **more: object) -> Task:
    return Task(teacher, student, PICTURES, **more)


def shapes(task: Task, entry: str) -> list[tuple[int, ...]]:
    """What the proposed taps read, by the taps that a run uses; with the batch left out."""
    found = []
    models = [task.the_teacher().module, task.new_student(0)]
    for model, path, side in zip(
        models, layout.propose(task, [entry])[entry], ("teacher", "student"), strict=True
    ):
        taps = Taps(model, {entry: path}, side)
        reader = reader_of(task.readers, side)
        x = PICTURES[0] if task.name == "task" else task.train[0]
        with evaluating(model):
            _, seen = taps.run(lambda m=model, v=x[:4], r=reader: m(r(v) if r else v))
        read = taps.entry(entry, seen)
        read = read if isinstance(read, list) else [read]
        found += [tuple(each.shape[1:]) for each in read]
        taps.close()
    return found


def test_maps_are_paired_where_they_are_as_large() -> None:
    pair = task(Maps(8), Maps(4))
    assert layout.propose(pair, layout.ENTRIES) == {
        "mid": ("two", "two"),
        "feature": ("three", "three"),
        "embedding": ("head:in", "head:in"),
        "blocks": (["one", "two", "three"], ["one", "two", "three"]),
    }
    assert shapes(pair, "blocks")[:3] == [(8, 8, 8), (16, 4, 4), (32, 2, 2)]
    assert shapes(pair, "mid") == [(16, 4, 4), (8, 4, 4)]
    assert shapes(pair, "feature") == [(32, 2, 2), (16, 2, 2)]
    assert shapes(pair, "embedding") == [(32,), (16,)]
    # The student's maps are 4, 2 and 1 a side; 4 is where both have one.
    pair = task(Maps(8), Maps(4, first=2))
    assert layout.propose(pair, ["mid"])["mid"] == ("two", "one")
    assert shapes(pair, "mid") == [(16, 4, 4), (4, 4, 4)]


def test_tokens_are_read_half_way_through_the_blocks() -> None:
    pair = task(Tokens(6), Tokens(3))
    assert layout.propose(pair, layout.ENTRIES) == {
        "mid": ("blocks.2", "blocks.1"),
        "feature": ("norm", "norm"),
        "embedding": ("head:in", "head:in"),
        "blocks": tuple([f"blocks.{i}" for i in range(n)] for n in (6, 3)),
    }
    assert shapes(pair, "mid") == [(16, 8), (16, 8)]


def test_vectors_are_read_where_layers_take_them() -> None:
    pair = task(Vectors(hidden=3), Vectors(hidden=1))
    assert layout.propose(pair, layout.ENTRIES) == {
        "mid": ("layers.2:in", "head:in"),
        "feature": ("head:in", "head:in"),
        "embedding": ("head:in", "head:in"),
        "blocks": (["layers.1:in", "layers.2:in", "head:in"], ["head:in"]),
    }
    flat = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    assert layout.propose(task(flat, flat), ["mid"]) == {"mid": ("2", "2")}


def test_kinds_may_differ() -> None:
    pair = task(Maps(), Vectors(hidden=2))
    assert layout.propose(pair, ["mid"])["mid"] == ("two", "layers.1:in")
    assert shapes(pair, "mid") == [(8, 4, 4), (8,)]
    pair = task(Tokens(5), Maps())
    assert layout.propose(pair, ["mid"])["mid"] == ("blocks.2", "two")


def test_what_a_model_gives_itself_needs_no_tap() -> None:
    pair = task(Named(), Maps())
    assert layout.propose(pair, ["mid", "embedding"]) == {
        "mid": (None, "two"),
        "embedding": (None, "head:in"),
    }
    assert layout.propose(task(Named(), Named()), ["mid", "embedding"]) == {}
    assert layout.propose(pair, ["logits", "hidden"]) == {}


class Listed(Maps):
    """Gives its blocks by itself."""

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"logits": super().forward(x), "blocks": [x, x]}


class Staged(nn.Module):
    """A stem, and stages of several blocks under a name of their own, as many networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
        one = nn.Sequential(conv(4, 4, 1), conv(4, 4, 1))
        two = nn.Sequential(conv(4, 8, 2), conv(8, 8, 1))
        self.stages = nn.Sequential(one, two, conv(8, 8, 2), conv(8, 8, 1))
        self.last = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.stages(self.norm(self.stem(x)))).mean((2, 3)))


def test_blocks_are_the_stages_of_one_row_and_a_stem_is_none() -> None:
    assert layout.propose(task(None, Staged()), ["blocks"]) == {
        "blocks": (None, ["stages.0", "stages.1", "stages.3"])
    }
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    assert layout.propose(task(None, plain), ["blocks"]) == {"blocks": (None, ["1", "4"])}
    mixed = nn.Sequential(conv(1, 4, 1), *plain[2:])  # of two stages the second is a ReLU
    assert layout.propose(task(None, mixed), ["blocks"]) == {"blocks": (None, ["0", "3"])}
    stem = Maps()
    stem.one, stem.two = nn.ReLU(), nn.Sequential(conv(4, 4, 1), conv(4, 8, 2))
    assert layout.propose(task(None, stem), ["blocks"]) == {"blocks": (None, ["two", "three"])}


def test_a_side_alone_may_be_asked_for() -> None:
    pair = task(ChannelsLast(), Maps())  # a teacher without stages, which nobody asks for
    assert layout.propose(pair, ["student:blocks"]) == {"blocks": (None, ["one", "two", "three"])}
    assert layout.propose(pair, ["teacher:embedding", "student:mid"]) == {
        "mid": (None, "two"),
        "embedding": ("head:in", None),
    }
    with pytest.raises(UsageError, match="'blocks' was found in the teacher"):
        layout.propose(pair, ["blocks"])
    with pytest.raises(UsageError, match="'blocks' was found in the teacher"):
        layout.propose(pair, ["student:blocks", "teacher:blocks"])
    assert layout.propose(task(None, Listed()), ["blocks"]) == {}
    assert layout.propose(task(Crowd((Maps(), Maps())), Maps()), ["student:mid"]) == {
        "mid": (None, "two")
    }


def test_teachers_without_a_module_and_with_several() -> None:
    assert layout.propose(task(None, Maps()), ["mid"]) == {"mid": (None, "two")}
    late = Untrained(lambda: Maps(8), "late")
    assert layout.propose(task(late, Maps()), ["feature"]) == {"feature": ("three", "three")}
    crowd = task(Crowd((Maps(8), Vectors())), Maps())
    assert layout.propose(crowd, ["mid", "embedding"]) == {
        "mid": (("two", "layers.2:in"), "two"),
        "embedding": (("head:in", "head:in"), "head:in"),
    }


def test_readers_are_used() -> None:
    pair = task(
        Vectors(here=16),
        Maps(),
        readers={"teacher": lambda x: x[:, 0, :4, :4], "student": lambda x: 2 * x},
    )
    assert shapes(pair, "mid") == [(8,), (8, 4, 4)]


@pytest.mark.parametrize("entry", ["mid", "feature"])
def test_no_place_is_a_sentence(entry: str) -> None:
    with pytest.raises(UsageError, match=f"'{entry}' was found in the student \\(ChannelsLast"):
        layout.propose(task(Maps(), ChannelsLast()), [entry])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))  # its one layer takes the picture itself
    with pytest.raises(UsageError, match=f"no place for '{entry}' was found in the teacher"):
        layout.propose(task(flat, Maps()), [entry])


def test_the_models_are_left_as_they_were() -> None:
    teacher = Maps().train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    layout.propose(task(teacher, Maps()), layout.ENTRIES)
    assert teacher.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


@pytest.mark.parametrize("families", [("cnn", "mlp"), ("resnet", "cnn"), ("mlp", "vit")])
def test_a_method_that_reads_inside_learns_by_proposed_taps(families: tuple[str, str]) -> None:
    world = make(f"digits(teacher={families[0]!r}, student={families[1]!r})", tiny=True)
    taps = layout.propose(world, layout.ENTRIES)
    assert set(taps) == set(layout.ENTRIES)
    # The worlds' own table says where the embedding is.
    assert taps["embedding"] == world.taps["embedding"]
    for entry in layout.ENTRIES:
        assert all(shapes(world, entry))


# -- trees -----------------------------------------------------------------------------------------


def test_a_tree_has_all_modules_with_shapes_and_parameters() -> None:
    model = Maps()
    rows = {row.path: row for row in layout.modules(model, PICTURES[0][:2])}
    assert list(rows) == [path for path, _ in model.named_modules()]
    assert rows["two"] == layout.Row(
        "two", "Sequential", "(B, 8, 4, 4)", sum(p.numel() for p in model.two.parameters())
    )
    assert rows[""].shape == "(B, 3)"
    assert rows[""].parameters == sum(p.numel() for p in model.parameters())
    assert rows["drop"].parameters == 0
    assert {row.shape for row in layout.modules(model)} == {""}
    with pytest.raises(UsageError, match=r"Maps does not take a batch \(2, 3, 8, 8\): "):
        layout.modules(model, torch.zeros(2, 3, 8, 8))
