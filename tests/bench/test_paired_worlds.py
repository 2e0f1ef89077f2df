"""Worlds of two modalities: their data, and what each modality says."""

import pytest
import torch
from torch import Tensor, nn

from limbeck.bench import worlds
from limbeck.bench.worlds import affect, pairs
from limbeck.core.crowd import Crowd
from limbeck.core.data import Table
from limbeck.core.evaluate import measure, score_teacher
from limbeck.core.teachers import Nobody
from limbeck.errors import Missing, UsageError

pytestmark = pytest.mark.xdist_group("paired_worlds")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slope(x: Tensor, y: Tensor) -> float:
    """The correlation of two series."""
    return float(torch.corrcoef(torch.stack((x, y)))[0, 1])


# --- pairs ---------------------------------------------------------------------------------------


def test_pairs_are_a_digit_and_a_wave_of_its_class() -> None:
    task = worlds.make("pairs(teacher='none')", tiny=True)
    assert isinstance(task.the_teacher(), Nobody)
    for name, n in (("train", 192), ("valid", 64), ("test", 64)):
        rows = task.set(name)
        assert rows["x"]["a"].shape == (n, 1, 8, 8)
        assert rows["x"]["b"].shape == (n, 40)
        assert set(rows["y"].tolist()) == set(range(10))
    assert len(Table(task.set("unlabelled"))) == 128
    x, y = pairs.draw(0)
    for part in x.values():
        assert float(part.std()) == pytest.approx(1.0, abs=1e-3)
    waves = pairs.templates(torch.Generator().manual_seed(1))
    assert waves.shape == (10, 40)
    # Every wave is nearest, over all shifts, to the mean of those of its own class, more often
    # than not: 10 classes, so that chance is a tenth.
    means = torch.stack([x["b"][y == k].mean(0) for k in range(10)])
    turned = torch.stack([means.roll(k, 1) for k in range(-4, 5)], 1)
    guess = torch.einsum("nt,kst->nks", x["b"], turned).amax(2).argmax(1)
    assert float((guess == y).double().mean()) > 0.5


def test_pairs_are_fixed_by_the_data_seed_alone() -> None:
    one, two = (worlds.make("pairs(teacher='none')", seed=s, tiny=True) for s in (1, 2))
    assert all(torch.equal(one.train["x"][k], two.train["x"][k]) for k in "ab")
    other = worlds.make("pairs(teacher='none', data_seed=1)", tiny=True)
    assert all(not torch.equal(one.train["x"][k], other.train["x"][k]) for k in "ab")


def test_the_teacher_of_pairs_sees_both_and_knows_more() -> None:
    task = worlds.make("pairs", tiny=True)
    table = Table(task.test)
    taught = score_teacher(task, table, torch.device("cpu"))
    assert taught is not None
    assert taught > 0.75  # of 64; a student alone gets about a half
    module = task.teacher.module
    x = {k: v.clone() for k, v in task.test["x"].items()}
    for name in "ab":  # both are used
        hidden = {**x, name: torch.zeros_like(x[name])}
        assert not torch.equal(module(**hidden).argmax(1), module(**x).argmax(1))
    student = task.new_student(0)
    assert measure(student, table, task.score, task.readers["student"]) < 0.4


def test_teachers_of_pairs_by_what_they_see() -> None:
    task = worlds.make("pairs(teacher='both+b')", tiny=True)
    assert isinstance(task.teacher, Crowd)
    assert task.taps["embedding"] == (("head:in", "model.head:in"), "head:in")
    x = task.test["x"]
    deaf = task.teacher.teachers[1].module
    assert torch.equal(deaf(**x), deaf(a=torch.zeros_like(x["a"]), b=x["b"]))
    assert set(task.data["peers"]) == {"both", "b"}
    fresh = task.data["peers"]["both"]()
    assert fresh(**x).shape == (64, 10)


def test_sentences_of_pairs() -> None:
    with pytest.raises(Missing, match=r"no teacher of pairs is called 'bot'; did you mean 'both'"):
        worlds.make("pairs(teacher='bot')", tiny=True)
    with pytest.raises(UsageError, match="give what it sees in quotes"):
        worlds.make("pairs(teacher=3)", tiny=True)


# --- affect --------------------------------------------------------------------------------------


def test_affect_has_sequences_and_faces_beside_them() -> None:
    task = worlds.make("affect", tiny=True)
    x, y = task.train["x"], task.train["y"]
    assert x["face"].shape == (32, 12, 1, 16, 16)
    assert x["sound"].shape == (32, 12, 1, 16, 8)
    assert y.shape == (32, 12, 2)
    assert 0.3 < float(y.std()) < 0.8
    assert float(y.abs().max()) < 1
    assert float((y[:, 1:] - y[:, :-1]).std()) < 0.6 * float(y.std())  # smooth
    labelled = task.data["expressions"]
    assert torch.equal(affect.sector(labelled["affect"]), labelled["y"])
    assert set(labelled["y"].tolist()) == set(range(8))
    assert task.data["unlabelled"].shape[1:] == (1, 16, 16)
    assert task.new_student(0)(**x).shape == y.shape


def test_mouths_and_eyes_follow_the_state() -> None:
    still = torch.full((2, 4), 0.5)
    state = torch.tensor([[0.9, 0.0], [-0.9, 0.0]])
    glad, sad = (
        affect.draw_faces(state.repeat(200, 1), seeded(), still.repeat(200, 1))
        .unflatten(0, (200, 2))
        .mean(0)[:, 0]
    )
    rows = torch.arange(16.0)[:, None]

    def height(face: Tensor, columns: slice) -> float:
        mouth = face[9:, columns].clamp_min(0)
        return float((mouth * rows[9:]).sum() / mouth.sum())

    corners, middle = slice(4, 6), slice(7, 9)
    assert height(glad, corners) < height(glad, middle)  # rows go down: a smile
    assert height(sad, corners) > height(sad, middle)
    state = torch.tensor([[0.0, 0.9], [0.0, -0.9]])
    wide, narrow = (
        affect.draw_faces(state.repeat(200, 1), seeded(), still.repeat(200, 1))
        .unflatten(0, (200, 2))
        .mean(0)[:, 0]
    )
    assert float(wide[:8].sum()) > 1.3 * float(narrow[:8].sum())


def test_a_voice_is_behind_the_face() -> None:
    made = affect.sequences(40, 30, seeded())
    loud = made["x"]["sound"][:, :, 0].mean(3)  # (N, T, mels)
    pitch = (loud.softmax(2) * torch.arange(16.0)).sum(2)
    valence = made["y"][..., 0]
    follows = {
        late: slope(pitch[:, late:].flatten(), valence[:, : 30 - late].flatten())
        for late in range(5)
    }
    assert max(follows, key=lambda late: follows[late]) == affect.DELAY
    assert follows[affect.DELAY] > 0.6


def test_the_third_of_a_triplet_is_the_odd_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen on what is drawn: the states, here in place of the faces."""
    monkeypatch.setattr(affect, "draw_faces", lambda state, rng, who=None: state)
    made = affect.triplets(90, seeded())
    one, two, three = made["x"].unbind(1)
    near = (one - two).norm(dim=1)
    assert bool((near <= (one - three).norm(dim=1) + 1e-6).all())
    assert bool((near <= (two - three).norm(dim=1) + 1e-6).all())
    kinds = affect.sector(made["x"].flatten(0, 1)).view(90, 3).tolist()
    assert made["one_class"].tolist() == [len(set(row)) == 1 for row in kinds]
    assert 5 < int(made["one_class"].sum()) < 60


def test_affect_has_no_teacher() -> None:
    with pytest.raises(Missing, match="no teacher 'cnn'"):
        worlds.make("affect(teacher='cnn')", tiny=True)
    assert not isinstance(worlds.make("affect", tiny=True).the_teacher(), nn.Module)
