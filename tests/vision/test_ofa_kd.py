"""ofa_kd: the loss by hand and by loops, branches of every form, pairs of architectures."""

import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax
from scipy.stats import entropy
from torch import Tensor, nn

import limbeck
from limbeck.bench.worlds._models import CNN, MLP, ViT
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import BlackBox
from limbeck.errors import Missing, UsageError
from limbeck.registry import make
from limbeck.vision.ofa_kd import OFAKD, ofa_loss, stages_of
from limbeck.vision.ofa_kd.branches import Merging, OfTokens, branch, lead_of, sep_conv, widths

pytestmark = pytest.mark.xdist_group("ofa_kd")

G = torch.Generator().manual_seed(4)
V = torch.randn(9, 5, generator=G, dtype=torch.float64)
T = 2 * torch.randn(9, 5, generator=G, dtype=torch.float64)
Y = torch.arange(9) % 5
CLOCK = Clock(0, "fit", 0, 10, 5)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "tau"), [(1.0, 1.0), (1.2, 1.0), (1.5, 2.0)])
def test_both_forms_by_loops(gamma: float, tau: float) -> None:
    released, written = (ofa_loss(V, T, Y, gamma, tau, f) for f in ("release", "paper"))
    for b, y in enumerate(Y.tolist()):
        p, q = softmax(T[b].numpy() / tau), softmax(V[b].numpy() / tau)
        one = two = 0.0
        for c in range(5):
            m = float(c == y)
            one -= ((p[c] + m) ** gamma - m) * math.log(q[c])
            two -= ((1 + p[c]) ** gamma if c == y else p[c]) * math.log(q[c])
        assert float(released[b]) == pytest.approx(one, rel=1e-9)
        assert float(written[b]) == pytest.approx(two, rel=1e-9)


def test_at_gamma_one_it_is_the_divergence_and_the_entropy() -> None:
    value = ofa_loss(V, T, Y)
    cross = F.cross_entropy(V, Y, reduction="none")
    for b in range(9):
        p, q = softmax(T[b].numpy()), softmax(V[b].numpy())
        assert float(value[b]) == pytest.approx(rel_entr(p, q).sum() + entropy(p), rel=1e-9)
    torch.testing.assert_close(ofa_loss(V, T, Y, form="paper") - cross, value)


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_a_sure_teacher_multiplies_the_cross_entropy(gamma: float) -> None:
    sure = 1e4 * torch.eye(5, dtype=torch.float64)[Y]
    cross = F.cross_entropy(V, Y, reduction="none")
    torch.testing.assert_close(ofa_loss(V, sure, Y, gamma), (2**gamma - 1) * cross)
    torch.testing.assert_close(ofa_loss(V, sure, Y, gamma, form="paper"), 2**gamma * cross)


def test_two_classes_by_hand() -> None:
    t, v, y = (
        torch.tensor([[0.8, 0.2]]).log().double(),
        torch.zeros(1, 2).double(),
        torch.tensor([0]),
    )
    by_hand = (1.8**1.5 - 1 + 0.2**1.5) * math.log(2)
    assert by_hand == pytest.approx(1.042768, abs=1e-6)
    assert float(ofa_loss(v, t, y, 1.5)) == pytest.approx(by_hand, rel=1e-6)


def test_the_target_weighs_more_where_the_teacher_is_sure_of_it() -> None:
    s = V.clone().requires_grad_()
    one, two = (torch.autograd.grad(ofa_loss(s, T, Y, g).sum(), s)[0] for g in (1.0, 1.5))
    for b, y in enumerate(Y.tolist()):
        p, q = T[b].softmax(0), V[b].softmax(0)
        for gamma, grad in ((1.0, one), (1.5, two)):
            m = F.one_hot(torch.tensor(y), 5).double()
            weights = torch.stack([(p[c] + m[c]) ** gamma - m[c] for c in range(5)])
            torch.testing.assert_close(grad[b], weights.sum() * q - weights)
    assert ofa_loss(V.bfloat16(), T.bfloat16(), Y).dtype == torch.float32


# --- branches -------------------------------------------------------------------------------------


def test_blocks_double_the_width_and_end_wide() -> None:
    assert widths(8, 3, 100) == [(8, 16), (16, 32), (32, 100)]
    assert widths(8, 1, 100) == [(8, 100)]
    assert widths(8, 0, 100) == []


def test_a_separable_convolution_halves_the_sides() -> None:
    made = sep_conv(6, 10)
    assert made(draw(2, 6, 8, 8)).shape == (2, 10, 4, 4)
    assert made(draw(2, 6, 5, 5)).shape == (2, 10, 3, 3)
    convs = [m for m in made if isinstance(m, nn.Conv2d)]
    assert [(c.groups, c.kernel_size[0], c.stride[0]) for c in convs] == [
        (6, 3, 2), (1, 1, 1), (6, 3, 1), (1, 1, 1),
    ]  # fmt: skip
    names = [type(m).__name__ for m in made]
    assert names == 2 * ["Conv2d", "Conv2d", "BatchNorm2d", "ReLU"]


def test_a_branch_of_a_map_has_a_block_for_each_stage_that_follows() -> None:
    for left, blocks in ((3, 3), (1, 1), (0, 0)):
        made = branch(draw(2, 4, 8, 8), left, 32, 48, 5, 7, G)
        assert sum(isinstance(m, nn.Sequential) for m in made) == blocks
        assert made[-1].weight.shape == (5, 48)
        assert made(draw(2, 4, 8, 8)).shape == (2, 5)
    assert made[0].weight.shape == (48, 4, 1, 1)  # with nothing left, a convolution of 1x1


def test_a_branch_of_a_vector_is_of_linear_layers() -> None:
    made = branch(draw(2, 6), 2, 6, 20, 5, 7, G)
    shapes = [tuple(m.weight.shape) for m in made.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(12, 6), (20, 12), (5, 20)]
    assert branch(draw(2, 6), 0, 6, 20, 5, 7, G)(draw(3, 6)).shape == (3, 5)


def test_tokens_before_the_patches_are_told_by_their_number() -> None:
    assert [lead_of(n) for n in (196, 197, 198, 49, 17, 5, 1, 2)] == [0, 1, 2, 0, 1, 1, 0, 1]
    with pytest.raises(UsageError, match="35 tokens, which are no square"):
        lead_of(35)


def test_merging_puts_four_tokens_into_one() -> None:
    made = Merging(3, 5, nn.Identity())
    x = draw(2, 16, 3)
    out = made(x)
    assert out.shape == (2, 4, 5)
    grid = x.view(2, 4, 4, 3)
    four = torch.cat([grid[:, 2, 0], grid[:, 3, 0], grid[:, 2, 1], grid[:, 3, 1]], 1)
    by_hand = F.layer_norm(four, (12,)) @ made.reduce.weight.T
    torch.testing.assert_close(out[:, 2], by_hand)


@pytest.mark.parametrize(
    ("side", "grid", "merged"), [(28, 7, 2), (16, 7, 1), (7, 7, 0), (12, 3, 2), (6, 1, 1)]
)
def test_patches_are_merged_to_no_less_than_the_grid(side: int, grid: int, merged: int) -> None:
    for lead in (0, 1):
        made = OfTokens(side * side + lead, 4, 2, 8, 5, grid)
        assert len(made.merge) == merged
        assert len(made.blocks) == 2
        assert made(draw(2, side * side + lead, 4)).shape == (2, 5)
        acts = [type(m.act).__name__ for m in made.merge]
        assert acts == (["GELU", "Identity"] if merged == 2 else ["GELU"] * merged)
    assert len(OfTokens(16, 8, 0, 8, 5, 7).blocks) == 1  # at least one


def test_logits_are_of_the_first_token_or_of_the_mean() -> None:
    x = draw(2, 5, 8)
    made = OfTokens(5, 8, 1, 8, 3, 7)
    seen = made.blocks(x)
    torch.testing.assert_close(made(x), made.head(seen[:, 0]))
    made = OfTokens(4, 8, 1, 8, 3, 7)
    torch.testing.assert_close(made(x[:, 1:]), made.head(made.blocks(x[:, 1:]).mean(1)))


def test_the_block_is_torchs_own_transformer_block() -> None:
    block = OfTokens(4, 8, 1, 8, 3, 7).blocks[0]
    own = nn.TransformerEncoderLayer(8, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        own.self_attn.in_proj_weight.copy_(block.qkv.weight)
        own.self_attn.in_proj_bias.zero_()
        for mine, theirs in (
            (block.proj, own.self_attn.out_proj), (block.mlp[0], own.linear1),
            (block.mlp[2], own.linear2), (block.norm1, own.norm1), (block.norm2, own.norm2),
        ):  # fmt: skip
            theirs.load_state_dict(mine.state_dict())
    x = draw(3, 4, 8)
    torch.testing.assert_close(block(x), own(x))
    assert OfTokens(4, 6, 1, 6, 3, 7).blocks[0].heads == 2  # four do not divide 6


def test_weights_are_drawn_as_told() -> None:
    made = branch(draw(1, 64, 8, 8), 1, 256, 256, 10, 7, torch.Generator().manual_seed(1))
    again = branch(draw(1, 64, 8, 8), 1, 256, 256, 10, 7, torch.Generator().manual_seed(1))
    convs = [m for m in made.modules() if isinstance(m, nn.Conv2d)]
    for conv in (convs[1], convs[3]):
        assert float(conv.weight.detach().std()) == pytest.approx(
            math.sqrt(2 / conv.out_channels), rel=0.05
        )
    assert float(made[-1].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(made[-1].bias.detach().abs().max()) == 0
    for one, two in zip(
        convs, (m for m in again.modules() if isinstance(m, nn.Conv2d)), strict=True
    ):
        assert torch.equal(one.weight, two.weight)


# --- the objective --------------------------------------------------------------------------------


def test_four_stages_are_taken_of_many_blocks() -> None:
    assert stages_of(list(range(1, 13))) == [2, 4, 10, 12]
    assert stages_of(list("abc")) == list("abc")
    alone = draw(8, 3)
    assert stages_of(alone)[0] is alone
    for n in range(5, 40):
        picked = stages_of(list(range(1, n + 1)))
        assert sorted(set(picked)) == picked
        assert (len(picked), picked[-1]) == (4, n)


def sides() -> tuple[SimpleNamespace, SimpleNamespace, Batch]:
    blocks = [draw(6, 4, 8, 8), draw(6, 8, 4, 4), draw(6, 12, 2, 2)]
    s = SimpleNamespace(logits=draw(6, 5), blocks=blocks)
    t = SimpleNamespace(logits=2 * draw(6, 5), embedding=draw(6, 20))
    return s, t, Batch(x=s.logits, y=torch.arange(6) % 5)


def asked(method: OFAKD) -> tuple[Any, ...]:
    s, t, batch = sides()
    parts = method.build(s, t, batch, Facts(6, 5, 10, 5)).eval()
    return method.terms(parts, s, t, batch, CLOCK), parts, s, t, batch


def test_terms_are_the_end_and_the_sum_over_branches() -> None:
    method = OFAKD(label=0.5, final=2.0, branches=3.0, gamma=(1.1, 1.2, 1.3, 1.4), tau=2.0)
    out, parts, s, t, batch = asked(method)
    y = batch.y
    assert set(out) == {"label", "final", "branches"}
    torch.testing.assert_close(out["label"], 0.5 * F.cross_entropy(s.logits, y))
    torch.testing.assert_close(out["final"], 2 * ofa_loss(s.logits, t.logits, y, 1.4, 2.0).mean())
    heads = parts["branches"]
    each = [
        ofa_loss(heads[str(k + 1)](s.blocks[k]), t.logits, y, 1.1 + 0.1 * k, 2.0).mean()
        for k in range(3)
    ]
    torch.testing.assert_close(out["branches"], 3 * sum(each))
    assert heads["1"][-1].weight.shape == (5, 20)  # the teacher's, which is wider


def test_one_gamma_is_for_all_and_some_stages_may_be_named() -> None:
    out, parts, s, t, batch = asked(OFAKD(at=(2,), gamma=(1.5,), form="paper"))
    assert list(parts["branches"]) == ["2"]
    v = parts["branches"]["2"](s.blocks[1])
    by_hand = ofa_loss(v, t.logits, batch.y, 1.5, form="paper").mean()
    torch.testing.assert_close(out["branches"], by_hand)
    assert sum(isinstance(m, nn.Sequential) for m in parts["branches"]["2"]) == 1


def test_soft_labels_have_their_largest_as_target() -> None:
    method = OFAKD(gamma=(1.5,))
    out, parts, s, t, batch = asked(method)
    soft = F.one_hot(batch.y, 5) * 0.8 + 0.04
    other = method.terms(parts, s, t, batch.replace(y=soft), CLOCK)
    assert torch.equal(other["final"], out["final"])
    assert torch.equal(other["branches"], out["branches"])
    by_hand = -(soft * s.logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(other["label"], by_hand)


def test_weight_zero_is_not_computed() -> None:
    assert set(asked(OFAKD(branches=0))[0]) == {"label", "final"}
    assert not list(asked(OFAKD(branches=0))[1].children())
    assert set(asked(OFAKD(label=0, final=0))[0]) == {"branches"}


MODELS = {
    "cnn": lambda: CNN((1, 8, 8), 4, (4, 6, 8)),
    "vit": lambda: ViT((1, 8, 8), 4, 8, 2, 2),
    "mlp": lambda: MLP((1, 8, 8), 4, (8, 8)),
}


def task(teacher: str, student: str, **kw: Any) -> Task:
    y = torch.arange(32) % 4
    x = draw(32, 1, 8, 8) + y[:, None, None, None]
    torch.manual_seed(1)
    taught, learns = MODELS[teacher](), MODELS[student]()
    taps = {n: (taught.taps[n], learns.taps[n]) for n in ("blocks", "embedding")}
    budget = Budget(steps=12, batch=16, optimiser=Optimiser("adam", lr=0.01))
    return Task(taught, learns, (x, y), test=(x, y), taps=taps, budget=replace(budget, **kw))


@pytest.mark.parametrize(
    ("teacher", "student"), [p for p in product(MODELS, MODELS) if p[0] != p[1]]
)
def test_any_architecture_teaches_any_other(teacher: str, student: str) -> None:
    given = task(teacher, student)
    result = limbeck.run("ofa_kd", given, device="cpu", gamma=(1.2,))
    rows = [row["terms"] for row in result.log if "terms" in row]
    assert set(rows[0]) == {"label", "final", "branches"}
    assert sum(r["branches"] for r in rows[-4:]) < sum(r["branches"] for r in rows[:4])
    fresh = MODELS[student]()  # the branches are not shipped
    assert {*result.model.state_dict()} == {*fresh.state_dict()}


def test_a_teacher_that_shows_logits_alone_is_enough() -> None:
    given = task("cnn", "vit")
    module = given.teacher

    def ask(x: Tensor) -> Tensor:
        with torch.no_grad():
            return module.eval()(x).softmax(1)

    log = limbeck.run(
        "ofa_kd", replace(given, teacher=BlackBox(ask, gives="probabilities")), device="cpu"
    ).log
    assert {n for row in log for n in row.get("terms", {})} == {"label", "final", "branches"}


def test_the_branches_teach_the_stages_below() -> None:
    given = task("cnn", "mlp", steps=1)
    fields = {"label": 0.0, "final": 0.0, "at": (1,)}
    student = limbeck.run("ofa_kd", given, device="cpu", **fields).model
    moved = [
        name for (name, new), old in zip(
            student.named_parameters(), given.student.parameters(), strict=True
        ) if not torch.equal(new, old)
    ]  # fmt: skip
    assert moved == ["body.0.0.weight", "body.0.0.bias"]


# --- what is refused ------------------------------------------------------------------------------


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UsageError, match="names stage 4, but the student has 3"):
        asked(OFAKD(at=(1, 4)))
    with pytest.raises(UsageError, match="has 2 values; give one, or 4"):
        asked(OFAKD(gamma=(1.0, 1.5)))
    for fields in ("gamma=()", "gamma=(0.0,)", "at=(0,)", "at=(1, 1)", "tau=0", "grid=0"):
        with pytest.raises(UsageError):
            make(f"ofa_kd({fields})")
    with pytest.raises(UsageError, match="no map"):
        branch(draw(2, 3, 4, 4, 4), 1, 4, 4, 5, 7, G)
    with pytest.raises(UsageError, match="same number of classes"):
        ofa_loss(V, T[:, :4], Y)
    with pytest.raises(Missing, match="'blocks'"):
        limbeck.run("ofa_kd", replace(task("cnn", "vit"), taps={}), device="cpu")
