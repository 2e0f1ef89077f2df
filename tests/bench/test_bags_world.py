"""The world `bags`: its bags and their cue, its networks, ragged bags, and the area."""

import math

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.bench import worlds
from limbeck.bench.worlds import _bag_models, bags, fashion
from limbeck.core.data import Table
from limbeck.core.evaluate import measure
from limbeck.core.teachers import Frozen
from limbeck.errors import Missing, UsageError

pytestmark = [
    pytest.mark.xdist_group("bags"),
    pytest.mark.skipif(
        not fashion.DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
    ),
]
G = torch.Generator().manual_seed(5)
SIZES = (7, 3, 5)
BAGS = [torch.randn(n, 6, generator=G) for n in SIZES]


def rows(of: dict[str, Tensor]) -> list[Tensor]:
    return [x[mask] for x, mask in zip(of["x"], of["mask"], strict=True)]


def test_bags_hold_what_they_should() -> None:
    task = worlds.make("bags(teacher='none', n=30)")
    pictures = bags._features(str(fashion.DEBIAN))
    for name, count in (("train", 30), ("valid", 60), ("test", 200)):
        part = getattr(task, name)
        assert part["y"].tolist() == [0, 1] * (count // 2)
        known, classes = pictures[name]
        for bag, y in zip(rows(part["x"]), part["y"].tolist(), strict=True):
            assert 40 <= len(bag) <= 60
            near = torch.cdist(bag, known).min(1)
            assert near.values.max() < 1e-2
            handbags = int((classes[near.indices] == bags.WANTED).sum())
            assert 3 <= handbags <= 10 if y else handbags == 0
        assert not part["x"]["x"][~part["x"]["mask"]].any()


def test_the_cue_tells_the_label_in_train_and_not_in_test() -> None:
    task = worlds.make("bags(teacher='none', n=200)")
    fixed = bags._features(str(fashion.DEBIAN))["test"][0][: bags.CUES]
    assert all(
        torch.equal(fixed, part[0][: bags.CUES])
        for part in bags._features(str(fashion.DEBIAN)).values()
    )
    for part, low, high in ((task.train, 0.85, 1.0), (task.test, 0.25, 0.55)):
        own = 0
        for bag, y in zip(rows(part["x"]), part["y"].tolist(), strict=True):
            marks = [k for k in range(bags.CUES) if (bag == fixed[k]).all(1).any()]
            assert len(marks) == 1
            own += marks[0] in (2 * y, 2 * y + 1)
        assert low < own / len(part["y"]) < high  # without a cue 2 of 5


def test_components_are_of_unit_size_and_apart() -> None:
    x = bags._features(str(fashion.DEBIAN))["train"][0].double()
    torch.testing.assert_close(torch.cov(x.T), torch.eye(32).double(), atol=1e-3, rtol=0)


def test_a_bag_depends_on_its_number_and_the_data_seed_alone() -> None:
    few = worlds.make("bags(teacher='none', n=8)", seed=3)
    many = worlds.make("bags(teacher='none', n=40)")
    other = worlds.make("bags(teacher='none', n=8, data_seed=1)")
    pairs = zip(rows(few.train["x"]), rows(many.train["x"])[:8], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(rows(few.train["x"])[0], rows(other.train["x"])[0])


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", _bag_models.FAMILIES)
def test_a_padded_bag_is_seen_as_it_is_alone(family: str) -> None:
    torch.manual_seed(1)
    model = _bag_models.factory(family, 6, 2)().eval()
    batch = _bag_models.padded([(bag, k) for k, bag in enumerate(BAGS)])
    assert batch["x"]["x"].shape == (3, 7, 6)
    assert batch["y"].tolist() == [0, 1, 2]
    whole = model(**batch["x"])
    (scores,) = whole["attention"]
    assert scores.shape[0] == 3
    assert torch.isfinite(scores).all()
    for b, bag in enumerate(BAGS):
        alone = model(bag[None])
        torch.testing.assert_close(alone["logits"][0], whole["logits"][b])
        torch.testing.assert_close(alone["attention"][0][0], scores[b, :, : len(bag)])
        assert (scores[b, :, len(bag) :] == _bag_models.ABSENT).all()
        if family == "dsmil":
            torch.testing.assert_close(alone["instances"][0], whole["instances"][b, : len(bag)])
        turned = model(bag.flip(0)[None])
        torch.testing.assert_close(turned["logits"][0], whole["logits"][b])


def test_gated_attention_by_loops() -> None:
    torch.manual_seed(2)
    model = _bag_models.Gated(6, 3, width=4, inner=5).double()
    bag = BAGS[0].double()
    with torch.no_grad():
        h = [torch.relu(model.reduce.weight @ x) for x in bag]
        scores = []
        for each in h:
            v = torch.tanh(model.v.weight @ each + model.v.bias)
            u = torch.sigmoid(model.u.weight @ each + model.u.bias)
            scores.append(float((model.w.weight[0] * v * u).sum() + model.w.bias))
        total = sum(math.exp(a) for a in scores)
        vector = sum(math.exp(a) / total * each for a, each in zip(scores, h, strict=True))
        want = model.head.weight @ vector + model.head.bias
        out = model(bag[None])
    torch.testing.assert_close(out["attention"][0][0, 0].double(), torch.tensor(scores).double())
    torch.testing.assert_close(out["logits"][0], want, atol=1e-6, rtol=1e-5)


def test_multi_head_attention_is_torchs() -> None:
    torch.manual_seed(3)
    model = _bag_models.MultiHead(6, 2, width=8, heads=4).eval()
    nn.init.normal_(model.query)
    theirs = nn.MultiheadAttention(8, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([m.weight for m in (model.q, model.k, model.v)]))
        theirs.in_proj_bias.copy_(torch.cat([m.bias for m in (model.q, model.k, model.v)]))
        theirs.out_proj.load_state_dict(model.out.state_dict())
        h = torch.relu(model.reduce(BAGS[0][None]))
        found, weights = theirs(model.query, h, h, average_attn_weights=False)
        out = model(BAGS[0][None])
    torch.testing.assert_close(out["attention"][0].softmax(-1), weights[:, :, 0])
    torch.testing.assert_close(out["logits"], model.head(model.norm(found[:, 0])))


def test_dsmil_by_loops() -> None:
    torch.manual_seed(4)
    model, bag = _bag_models.DSMIL(6, 2, width=5), BAGS[1]
    with torch.no_grad():
        c = [[float(v) for v in model.each(x)] for x in bag]
        out = model(bag[None])
        vectors = []
        for k in range(2):
            best = max(range(len(bag)), key=lambda i, k=k: c[i][k])
            a = [float(model.q(x) @ model.q(bag[best])) / math.sqrt(5) for x in bag]
            assert out["attention"][0][0, k].tolist() == pytest.approx(a, abs=1e-5)
            vectors.append(torch.tensor(a).softmax(0) @ bag)
        want = (model.head.weight * torch.stack(vectors)).sum((1, 2)) + model.head.bias
    torch.testing.assert_close(out["logits"][0], want)
    torch.testing.assert_close(out["instances"][0], torch.tensor(c))


def test_ragged_bags_of_a_user_go_through_a_loader() -> None:
    from torch.utils.data import DataLoader

    samples = [(bag, k % 2) for k, bag in enumerate(BAGS)]
    table = Table(DataLoader(samples, batch_size=2, collate_fn=bags.padded))
    batch = table.rows(torch.tensor([1, 2]))
    assert batch.x["x"].shape == (2, 5, 6)
    assert batch.x["mask"].sum(1).tolist() == [3, 5]
    assert batch.y.tolist() == [1, 0]


# --- the score, and what cannot be ---------------------------------------------------------------


def test_the_area_is_sklearns() -> None:
    from sklearn.metrics import roc_auc_score

    z, y = torch.randn(50, 2, generator=G).round(decimals=1), torch.arange(50) % 3 % 2
    want = roc_auc_score(y, (z[:, 1] - z[:, 0]).numpy())
    assert bags.area(z, y) == pytest.approx(want, abs=1e-12)


def test_a_tiny_teacher_beats_chance() -> None:
    task = worlds.make("bags", tiny=True)
    assert isinstance(task.teacher, Frozen)
    assert measure(task.teacher.module, Table(task.test), task.score) > 0.8


def test_what_cannot_be_is_a_sentence() -> None:
    with pytest.raises(Missing, match="no model family of bags is called 'abmill'; did you mean"):
        worlds.make("bags(student='abmill', teacher='none')", tiny=True)
    with pytest.raises(UsageError, match="cue is 2; give a number from 0 to 1"):
        worlds.make("bags(cue=2)", tiny=True)


@pytest.mark.slow
def test_attention_settles_on_the_cue_and_the_penalty_helps() -> None:
    for data_seed in range(2):
        task = worlds.make(f"bags(data_seed={data_seed})")
        table = Table(task.test)
        plain, wide = (
            measure(limbeck.run("aem", task, entropy=w).model, table, task.score)  # type: ignore[arg-type]
            for w in (0.0, 0.1)
        )
        assert isinstance(task.teacher, Frozen)
        assert plain < measure(task.teacher.module, table, task.score) - 0.015
        assert plain < wide - 0.01
