"""masked_counterfactual_ft: relevance, masks, refills, zero-shot heads and averaged weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.bench import worlds
from limbeck.bench.worlds._models import CNN, ViT
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import Nobody
from limbeck.core.views import Look, Side
from limbeck.errors import UsageError
from limbeck.runs.door import run
from limbeck.vision.masked_counterfactual_ft import MaskedCounterfactualFT
from limbeck.vision.masked_counterfactual_ft.filling import (
    ZeroShot,
    averaged,
    hidden,
    refill,
    several,
    single,
    zero_shot,
)
from limbeck.vision.masked_counterfactual_ft.relevance import (
    Attentions,
    attention_relevance,
    grad_cam,
    normalised,
)

pytestmark = pytest.mark.xdist_group("masked_counterfactual_ft")
CLOCK = Clock(0, "fit", 0, 10, 5)


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT((3, 16, 16), 5, dim=16, depth=3, heads=2).eval()


def cnn() -> CNN:
    torch.manual_seed(0)
    return CNN((3, 16, 16), 5, (6, 8)).eval()


def pictures(n: int = 6, seed: int = 0) -> Batch:
    x = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Batch(x=x, y=torch.arange(n) % 5, index=torch.arange(n))


def sides(make: Callable[[], Any], batch: Batch) -> tuple[Side, Side]:
    """Student and teacher of the same weights, in eval mode."""
    looks = [Look(m, side, m.taps) for m, side in ((make(), "student"), (make(), "teacher"))]
    return looks[0].side_of(batch), looks[1].side_of(batch)


def seen_by(method: MaskedCounterfactualFT, make: Callable[[], Any], batch: Batch) -> Tensor:
    """The pictures x' that both sides are shown."""
    s, t = sides(make, batch)
    shown = []
    t._look.model.register_forward_pre_hook(lambda m, args: shown.append(args[0]))
    method.terms(None, s, t, batch, CLOCK)
    (x,) = shown
    return x  # type: ignore[no-any-return]


# --- attention and relevance ---------------------------------------------------------------------


def test_looking_at_attention_changes_no_number() -> None:
    model, x = vit(), pictures().x
    with Attentions() as seen:
        z = model(x)
    torch.testing.assert_close(z, model(x))
    assert [tuple(a.shape) for a in seen.maps] == [(6, 2, 17, 17)] * 3
    for a in seen.maps:
        torch.testing.assert_close(a.sum(-1), torch.ones(6, 2, 17))


@pytest.mark.parametrize("dark", [True, False])
def test_the_plain_way_is_torchs(dark: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = torch.rand(5, 5) > 0.5
    mask.fill_diagonal_(True)
    given = mask if dark else torch.randn(5, 5)
    for scale in (None, 0.3):
        wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=scale)
        with Attentions():
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=scale)
        torch.testing.assert_close(found, wanted)


def test_layers_that_average_their_weights_or_give_none() -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
    for more in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        out, weights = layer(x, x, x, **more)
        with Attentions() as seen:
            found, kept = layer(x, x, x, **more)
        torch.testing.assert_close(found, out)
        assert len(seen.maps) == 1
        if weights is None:
            assert kept is None
        else:
            torch.testing.assert_close(kept, weights)


def test_a_transformers_model_of_timm_or_of_the_hub_is_read() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=4,
    )
    model = transformers.ViTForImageClassification(config).eval()
    with Attentions() as seen:
        z = model(pictures(2).x).logits
    assert [tuple(a.shape) for a in seen.maps] == [(2, 2, 17, 17)] * 2
    assert float(attention_relevance(z[:, 0], seen.maps).max()) > 0


def test_relevance_by_loops() -> None:
    g = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 5, 5, generator=g).requires_grad_() for _ in range(2)]
    weights = [torch.randn(2, 3, 5, 5, generator=g) for _ in range(2)]
    z = sum((w * a * a).sum((1, 2, 3)) for w, a in zip(weights, maps, strict=True))
    found = attention_relevance(z, maps)  # type: ignore[arg-type]
    for i in range(2):
        r = torch.eye(5)
        for w, a in zip(weights, maps, strict=True):
            mean = torch.zeros(5, 5)
            for h in range(3):
                mean += (2 * w[i, h] * a[i, h] * a[i, h]).clamp(min=0).detach() / 3
            r = r + mean @ r
        torch.testing.assert_close(found[i], r[0, 1:])


def test_without_slopes_nothing_is_relevant() -> None:
    a = torch.rand(2, 1, 5, 5, requires_grad=True)
    cam = normalised(attention_relevance((0 * a).sum((1, 2, 3)), [a]))
    assert torch.equal(cam, torch.zeros(2, 4))
    other = torch.rand(2, 1, 10, 10, requires_grad=True)  # no square of patches before 0..8 tokens
    with pytest.raises(UsageError, match="differ from layer to layer"):
        attention_relevance(other.sum((1, 2, 3)), [a, other])


def test_patches_that_are_pooled_have_the_mean_row() -> None:
    a = torch.rand(1, 1, 4, 4, requires_grad=True)
    found = attention_relevance(a.sum((1, 2, 3)), [a])
    torch.testing.assert_close(found, (torch.eye(4) + a[0].detach()).mean(1))


def test_grad_cam_by_loops_on_maps_and_tokens() -> None:
    g = torch.Generator().manual_seed(0)
    a, w = torch.randn(2, 3, 2, 2, generator=g), torch.randn(2, 3, 2, 2, generator=g)
    a.requires_grad_()
    found = grad_cam((w * a).sum((1, 2, 3)), a)
    for i in range(2):
        for y in range(2):
            for x in range(2):
                total = sum(float(w[i, k].sum() * a.detach()[i, k, y, x]) for k in range(3))
                assert float(found[i, y, x]) == pytest.approx(max(total, 0), abs=1e-5)
    tokens = torch.randn(1, 5, 3, generator=g).requires_grad_()
    slope = torch.randn(1, 5, 3, generator=g)
    cam = grad_cam((slope * tokens).sum((1, 2)), tokens)
    wanted = (slope.sum(1) * tokens[0, 1:]).sum(1).relu()
    torch.testing.assert_close(cam[0], wanted.detach())
    with pytest.raises(UsageError, match="no square of tokens"):
        grad_cam(tokens.sum((1, 2)), torch.zeros(1, 3))
    with pytest.raises(UsageError, match="no gradient"):
        grad_cam(tokens.sum((1, 2)), torch.zeros(1, 3, 2, 2))


# --- masks and refills ---------------------------------------------------------------------------


def test_pixels_come_from_the_picture_or_the_other_one() -> None:
    x, g = pictures(4).x, torch.Generator().manual_seed(1)
    mask, source = torch.rand(4, 4, 4, generator=g) < 0.5, torch.tensor([1, 2, 3, 0])
    many = torch.randint(4, (4, 4, 4), generator=g)
    one, several_ = refill(x, mask, source), refill(x, mask, many)
    for i in range(4):
        for y in range(16):
            for z in range(16):
                m = bool(mask[i, y // 4, z // 4])
                from_one = x[source[i] if m else i, :, y, z]
                from_many = x[many[i, y // 4, z // 4] if m else i, :, y, z]
                assert torch.equal(one[i, :, y, z], from_one)
                assert torch.equal(several_[i, :, y, z], from_many)
    assert torch.equal(refill(x, torch.zeros_like(mask), source), x)
    assert torch.equal(refill(x, torch.ones_like(mask), source), x[source])


def test_nobody_is_filled_from_himself() -> None:
    u = torch.rand(9)
    other = single(u)
    assert sorted(other.tolist()) == list(range(9))
    assert not (other == torch.arange(9)).any()
    shift = 1 + torch.randint(8, (9, 400))
    patches = several(u, shift)
    for i in range(9):
        assert set(patches[i].tolist()) == set(range(9)) - {i}
    turn = torch.randperm(9)  # in another order of the samples the same ones meet
    assert torch.equal(turn[single(u[turn])], other[turn])


def test_so_many_are_hidden() -> None:
    dark = hidden(torch.rand(5, 16), 0.3)
    assert dark.sum(1).tolist() == [5] * 5  # int(16 * 0.7) = 11 are kept
    assert hidden(torch.rand(5, 16), 0.0).sum() == 0


@pytest.mark.parametrize("make", [vit, cnn])
def test_context_is_what_the_object_is_not(make: Callable[[], Any]) -> None:
    batch = pictures()
    one, other = (
        seen_by(MaskedCounterfactualFT(mask=mask, threshold=0.4), make, batch)  # type: ignore[arg-type]
        for mask in ("object", "context")
    )
    u = CLOCK.rng("fill", batch.index).rand(1)[:, 0]
    source = batch.x[single(u)]
    assert (((one == batch.x) & (other == source)) | ((one == source) & (other == batch.x))).all()
    assert not torch.equal(one, batch.x)
    assert not torch.equal(other, batch.x)


def test_the_most_relevant_patch_is_masked_and_no_other_at_the_top() -> None:
    batch = pictures()
    x = seen_by(MaskedCounterfactualFT(threshold=0.99), vit, batch)
    changed = (x != batch.x).any(1).view(6, 4, 4, 4, 4).transpose(2, 3).any(-1).any(-1).flatten(1)
    model = vit()
    with Attentions() as seen:
        z = model(batch.x).gather(1, batch.y[:, None])[:, 0]
    cam = attention_relevance(z, seen.maps)
    assert changed.sum(1).tolist() == [1] * 6
    assert torch.equal(changed.int().argmax(1), cam.argmax(1))


def test_a_random_share_and_none() -> None:
    batch = pictures(6)
    assert torch.equal(
        seen_by(MaskedCounterfactualFT(mask="random", share=0.0), cnn, batch), batch.x
    )
    assert torch.equal(seen_by(MaskedCounterfactualFT(mask="none"), cnn, batch), batch.x)
    x = seen_by(MaskedCounterfactualFT(mask="random", share=0.5), cnn, pictures(40))
    share = float((x != pictures(40).x).float().mean())
    assert share == pytest.approx(0.5, abs=0.05)
    assert torch.equal(seen_by(MaskedCounterfactualFT(fill="none"), vit, batch), batch.x)


def test_hidden_patches_make_no_difference_and_others_do() -> None:
    model, x, dark = vit(), pictures().x, torch.zeros(6, 16, dtype=torch.bool)
    dark[:, 3] = True  # columns 12 to 15 of the first four rows
    other = x.clone()
    other[:, :, :4, 12:] += 5
    with Attentions(dark):
        torch.testing.assert_close(model(x), model(other))
    assert not torch.allclose(model(x), model(other))
    with Attentions(~dark):
        assert not torch.allclose(model(x), model(other))
    with Attentions(dark[:, :0]):
        torch.testing.assert_close(model(x), vit()(x))


# --- terms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vit, cnn])
@pytest.mark.parametrize("fill", ["single", "multi"])
def test_at_the_start_there_is_nothing_to_keep(make: Callable[[], Any], fill: str) -> None:
    batch = pictures()
    s, t = sides(make, batch)
    terms = MaskedCounterfactualFT(fill=fill).terms(None, s, t, batch, CLOCK)  # type: ignore[arg-type]
    assert float(terms["distil"].detach()) < 1e-10
    torch.testing.assert_close(terms["label"], F.cross_entropy(make()(batch.x), batch.y))
    slopes = torch.autograd.grad(
        terms["distil"], list(s._look.model.parameters()), allow_unused=True
    )
    assert all(g is None or float(g.abs().max()) < 1e-4 for g in slopes)


def test_the_distance_is_of_features_as_they_come() -> None:
    batch = pictures()
    s, t = sides(cnn, batch)
    with torch.no_grad():
        s._look.model.body[1][0].weight.mul_(1.3)
    method = MaskedCounterfactualFT(label=0.0, mask="none", distil=2.0)
    (term,) = method.terms(None, s, t, batch, CLOCK).values()
    gap = s._look.model.body(batch.x).mean((2, 3)) - cnn().body(batch.x).mean((2, 3))
    torch.testing.assert_close(term, 2 * gap.square().mean())


def test_what_cannot_be_masked_is_said() -> None:
    batch = pictures()
    for fields, make, says in (
        ({"fill": "none"}, cnn, "the student has none"),
        ({"relevance": "attention"}, cnn, "has no attention"),
    ):
        with pytest.raises(UsageError, match=says):
            MaskedCounterfactualFT(**fields).terms(None, *sides(make, batch), batch, CLOCK)
    flat = Batch(x=torch.zeros(4, 7), y=batch.y[:4], index=batch.index[:4])
    model = nn.Linear(7, 5)
    side = Look(model, "student", {}).side_of(flat)
    with pytest.raises(UsageError, match="was given inputs"):
        MaskedCounterfactualFT().terms(None, side, side, flat, CLOCK)


# --- zero-shot heads, averages, runs -------------------------------------------------------------


def test_a_zero_shot_head_says_the_cosine_with_the_mean_prompt() -> None:
    g = torch.Generator().manual_seed(0)
    texts, tower = torch.randn(3, 4, 6, generator=g), nn.Linear(5, 6, bias=False)
    model, x = ZeroShot(tower, texts, 100.0), torch.randn(2, 5, generator=g)
    out = model(x)
    torch.testing.assert_close(out["embedding"], tower(x))
    for c in range(3):
        mean = sum(t / t.norm() for t in texts[c]) / 4
        for i in range(2):
            cos = F.cosine_similarity(tower(x)[i], mean, dim=0)  # type: ignore[arg-type]
            assert float(out["logits"][i, c].detach()) == pytest.approx(
                100 * float(cos.detach()), abs=1e-3
            )
    torch.testing.assert_close(zero_shot(texts, 2.0).norm(dim=1), torch.full((3,), 2.0))
    with pytest.raises(UsageError, match="give text embeddings"):
        ZeroShot(tower, texts[0], 1.0)


def test_averages() -> None:
    start, end = ({"w": torch.full((2,), v), "n": torch.tensor(int(v))} for v in (1.0, 3.0))
    for share, value in ((0.0, 1.0), (0.5, 2.0), (1.0, 3.0)):
        found = averaged(start, end, share)
        assert found["w"].tolist() == [value] * 2
        assert int(found["n"]) == 3


def small(**fields: Any) -> Task:
    batch = pictures(16)
    plan = Budget(steps=3, batch=8, optimiser=Optimiser("adam", lr=1e-2))
    given: dict[str, Any] = {
        "teacher": vit(),
        "student": lambda: ViT((3, 16, 16), 5, 16, 3, 2),
        "train": (batch.x, batch.y),
        "taps": {"embedding": ("head:in",) * 2},
        "budget": plan,
    }
    return Task(**{**given, **fields})


def test_what_is_delivered_lies_half_way() -> None:
    task = small()
    whole, half, none = (
        run(MaskedCounterfactualFT(wise=wise), task, seed=0).model for wise in (1.0, 0.5, 0.0)
    )
    start = vit().state_dict()
    for name, tensor in whole.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(half.state_dict()[name], (start[name] + tensor) / 2)  # type: ignore[union-attr]
        assert torch.equal(none.state_dict()[name], start[name])  # type: ignore[union-attr]
    assert not torch.equal(whole.head.weight, start["head.weight"])  # type: ignore[union-attr]


def test_prompts_make_a_tower_a_model_and_shifts_are_reported() -> None:
    torch.manual_seed(0)
    tower, texts = vit(), torch.randn(4, 3, 5)
    batch = pictures(16)
    shifts = {"there": (batch.x, batch.y % 4)}
    task = small(
        teacher=tower,
        taps={},
        train=(batch.x, batch.y % 4),
        data={"prompts": texts, "shifts": shifts},
    )
    result = run(MaskedCounterfactualFT(distil=1.0), task, seed=0)
    assert isinstance(result.model, ZeroShot)
    assert result.model(batch.x)["logits"].shape == (16, 4)
    right = (result.model.eval()(batch.x)["logits"].argmax(1) == batch.y % 4).double().mean()
    assert result.report == {"there": pytest.approx(float(right))}


def test_the_student_must_be_the_teacher() -> None:
    other = small(student=lambda: ViT((3, 16, 16), 5, 8, 3, 2))
    with pytest.raises(UsageError, match="the same architecture"):
        run(MaskedCounterfactualFT(), other, seed=0)
    with Run(seed=0), pytest.raises(UsageError, match="this teacher is Nobody"):
        MaskedCounterfactualFT().run(small(teacher=Nobody()))


def test_masked_features_keep_what_labels_alone_forget() -> None:
    task = worlds.make("biased", tiny=True)
    free, kept = (
        run(MaskedCounterfactualFT(distil=weight), task, seed=0).log[-1]["terms"]
        for weight in (1e-6, 30.0)
    )
    assert kept["distil"] / 30 < 0.5 * free["distil"] / 1e-6
