"""MST-Distill: its losses, masks and gate, what each stage trains, and who is masked where."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.bench import worlds
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts
from limbeck.core.passes import Passes
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import Missing, UsageError
from limbeck.multimodal.mst_distill import MSTDistill
from limbeck.multimodal.mst_distill.losses import (
    balance_loss,
    by_teacher,
    fallen,
    kd_loss,
    routed_loss,
)
from limbeck.multimodal.mst_distill.stages import Gate, Routed, Together
from limbeck.multimodal.mst_distill.teachers import Group, Mask, chosen, features_of

pytestmark = pytest.mark.xdist_group("mst_distill")


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_kd(p: Tensor, q: Tensor, tau: float) -> float:
    """tau^2 KL(q || p) of one sample's logits (C,)."""
    one = [math.exp(v / tau) for v in p.tolist()]
    two = [math.exp(v / tau) for v in q.tolist()]
    a, b = [v / sum(one) for v in one], [v / sum(two) for v in two]
    return tau**2 * sum(y * math.log(y / x) for x, y in zip(a, b, strict=True))


class Net(nn.Module):
    """Two hidden layers and a head on one or both of two modalities."""

    def __init__(self, *names: str, width: int = 8) -> None:
        super().__init__()
        self.names = names
        self.one, self.two = nn.Linear(4 * len(names), width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, **x: Tensor) -> Tensor:
        h = torch.cat([x[n] for n in self.names], 1)
        return self.head(self.two(self.one(h).relu()).relu())


def task(n: int = 48, **changes: Any) -> Task:
    """Three classes; `b` says which, `a` says it in noise."""
    y = torch.arange(n) % 3
    x = {
        "a": nn.functional.one_hot(y, 4) + 2 * rand(n, 4),
        "b": nn.functional.one_hot(y, 4).float(),
    }
    sets = {"x": x, "y": y}
    made = Task(
        teacher=None,
        student=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        train=sets,
        valid={"x": {k: v[:12] for k, v in x.items()}, "y": y[:12]},
        test=sets,
        budget=Budget(steps=4, batch=16, optimiser=Optimiser("adam", lr=1e-2)),
        data={"peers": {"both": lambda: Net("a", "b"), "b": lambda: Net("b")}},
        readers={"student": lambda x: x["a"]},
        classes=3,
    )
    return replace(made, **changes)


def fits(method: MSTDistill, on: Task) -> tuple[list[Passes], Any]:
    seen: list[Passes] = []
    with Run(on, 3, device="cpu", on_fit=seen.append):
        return seen, method.run(on)


# --- the losses ----------------------------------------------------------------------------------


def test_kd_is_the_kl_of_the_one_that_teaches_times_tau_squared() -> None:
    p, q = rand(5, 4), rand(5, 4, seed=1)
    wanted = [slow_kd(a, b, 4.0) for a, b in zip(p, q, strict=True)]
    torch.testing.assert_close(kd_loss(p, q), torch.tensor(wanted), rtol=1e-4, atol=1e-6)
    assert float(kd_loss(p, p).abs().max()) == 0.0


def test_kd_sends_its_gradient_to_both_sides() -> None:
    p, q = rand(5, 4).requires_grad_(), rand(5, 4, seed=1).requires_grad_()
    one, two = torch.autograd.grad(kd_loss(p, q).sum(), (p, q))
    assert float(one.norm()) > 0
    assert float(two.norm()) > 0


def test_kd_of_maps_is_the_mean_over_places() -> None:
    p, q = rand(2, 4, 3, 5), rand(2, 4, 3, 5, seed=1)
    wanted = [
        sum(slow_kd(p[b, :, i, j], q[b, :, i, j], 4.0) for i in range(3) for j in range(5)) / 15
        for b in range(2)
    ]
    torch.testing.assert_close(kd_loss(p, q), torch.tensor(wanted), rtol=1e-4, atol=1e-6)


def test_by_teacher_pairs_the_student_with_each() -> None:
    s, group = rand(3, 4), rand(3, 2, 4, seed=1)
    there = by_teacher(s, group, 2.0)
    back = by_teacher(s, group, 2.0, back=True)
    for b in range(3):
        for k in range(2):
            assert float(there[b, k]) == pytest.approx(slow_kd(s[b], group[b, k], 2.0), rel=1e-4)
            assert float(back[b, k]) == pytest.approx(slow_kd(group[b, k], s[b], 2.0), rel=1e-4)


def test_balance_of_a_uniform_mean_is_zero_whatever_each_sample_chooses() -> None:
    sure = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).log()
    assert float(balance_loss(sure)) == pytest.approx(0.0, abs=1e-6)
    assert float(balance_loss(sure, "cv")) == pytest.approx(0.0, abs=1e-5)


def test_balance_by_hand() -> None:
    g = torch.tensor([[0.7, 0.1, 0.2], [0.3, 0.4, 0.3]]).log()  # the mean is (0.5, 0.25, 0.25)
    assert float(balance_loss(g)) == pytest.approx(0.056633, abs=1e-6)
    assert float(balance_loss(g)) / 3 == pytest.approx(0.018878, abs=1e-6)
    deviation = math.sqrt((1 / 6) ** 2 / 2 + 2 * (1 / 12) ** 2 / 2)  # about 1 / 3, by two
    assert float(balance_loss(g, "cv")) == pytest.approx(3 * deviation, rel=1e-5)


def test_balance_is_finite_where_a_softmax_is_not() -> None:
    g = torch.tensor([[1e4, 0.0, -1e4]]).requires_grad_()
    loss = balance_loss(g)
    assert float(loss.detach()) == pytest.approx((0 + 1e4 + 2e4) / 3 - math.log(3), rel=1e-5)
    assert bool(torch.autograd.grad(loss, g)[0].isfinite().all())


def test_routed_over_all_teachers_is_the_plain_mean() -> None:
    each = rand(6, 4).abs()
    for seed in (1, 2):
        r = rand(6, 4, seed=seed).softmax(1)
        torch.testing.assert_close(routed_loss(each, r, 4), each.mean())


def test_routed_takes_each_samples_own_best() -> None:
    each, r = rand(6, 4).abs(), rand(6, 4, seed=1).softmax(1)
    best = [sorted(range(4), key=lambda k: -float(row[k]))[:2] for row in r]
    wanted = sum(float(each[b, k]) / 2 for b in range(6) for k in best[b]) / 6
    assert float(routed_loss(each, r, 2)) == pytest.approx(wanted, rel=1e-5)
    share = [
        [float(r[b, k]) / sum(float(r[b, j]) for j in best[b]) for k in best[b]] for b in range(6)
    ]
    wanted = (
        sum(s * float(each[b, k]) for b in range(6) for s, k in zip(share[b], best[b], strict=True))
        / 6
    )
    assert float(routed_loss(each, r, 2, weighted=True)) == pytest.approx(wanted, rel=1e-5)


def test_only_weighted_teachers_teach_the_gate() -> None:
    each, r = rand(6, 4).abs(), rand(6, 4, seed=1).softmax(1).requires_grad_()
    assert not routed_loss(each, r, 2).requires_grad
    assert float(torch.autograd.grad(routed_loss(each, r, 2, weighted=True), r)[0].norm()) > 0


def test_weights_fall_after_the_first_epoch_too() -> None:
    for by, every in ((0.5, 30), (0.9, 10), (0.5, 1)):
        weight = 1.0
        for epoch in range(100):
            assert fallen(epoch, by, every) == pytest.approx(weight)
            weight *= by if epoch % every == 0 else 1


# --- masks, teachers and the gate ----------------------------------------------------------------


def test_a_mask_with_a_silent_last_layer_is_a_half() -> None:
    for mask, h in ((Mask(8, False, 3, 2), rand(4, 8)), (Mask(6, True, 3, 2), rand(4, 6, 5, 5))):
        nn.init.zeros_(mask.out.weight)
        nn.init.zeros_(mask.out.bias)
        torch.testing.assert_close(mask(h), h / 2)


def test_a_mask_is_attention_among_the_features() -> None:
    mask, h = Mask(4, False, 1, 2).eval(), rand(3, 4)
    e = mask.attention.embed_dim
    assert e == 2
    (wq, wk, wv), (bq, bk, bv) = (
        mask.attention.in_proj_weight.chunk(3),
        mask.attention.in_proj_bias.chunk(3),
    )
    for b in range(3):
        tokens = (mask.embed.weight @ h[b] + mask.embed.bias).reshape(4, e)
        q, k, v = tokens @ wq.T + bq, tokens @ wk.T + bk, tokens @ wv.T + bv
        for i in range(4):
            w = torch.stack([q[i] @ k[j] / math.sqrt(e) for j in range(4)]).softmax(0)
            seen = mask.attention.out_proj(sum(w[j] * v[j] for j in range(4)))
            wanted = h[b, i] * mask.out(seen).sigmoid()
            torch.testing.assert_close(mask(h)[b, i], wanted[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "heads", "factor", "size"),
    [(596, 3, 2, 297), (320, 3, 2, 159), (8, 3, 2, 3), (4, 3, 2, 3)],
)
def test_sizes_of_a_masks_tokens(width: int, heads: int, factor: int, size: int) -> None:
    with torch.device("meta"):
        assert Mask(width, False, heads, factor).attention.embed_dim == size


def test_one_number_for_each_channel_of_a_map() -> None:
    mask, h = Mask(6, True, 3, 2).eval(), rand(4, 6, 5, 7)
    share = mask(h) / h
    torch.testing.assert_close(share, share[:, :, :1, :1].expand_as(share), rtol=1e-4, atol=1e-5)
    assert bool(((share > 0) & (share < 1)).all())


def group(bias: float) -> tuple[Group, nn.ModuleDict, dict[str, Tensor]]:
    torch.manual_seed(0)
    peers = nn.ModuleDict({"both": Net("a", "b"), "b": Net("b")})
    masks = [Mask(8, False, 3, 2) for _ in range(3)]
    for mask in masks:
        nn.init.zeros_(mask.out.weight)
        nn.init.constant_(mask.out.bias, bias)
    places = [("both", "one"), ("both", "two"), ("b", "two")]
    return Group(peers, places, masks), peers, {"a": rand(5, 4), "b": rand(5, 4, seed=1)}


def test_masks_of_one_leave_all_teachers_as_they_are() -> None:
    made, peers, x = group(100.0)
    both, b = peers["both"](**x), peers["b"](**x)
    torch.testing.assert_close(made(**x), torch.stack((both, both, b), 1))
    assert all(not m._forward_hooks for m in peers.modules())


def test_a_mask_acts_at_its_own_layer_of_its_own_teacher() -> None:
    made, peers, x = group(0.0)  # every mask is a half
    net = peers["both"]
    h = torch.cat((x["a"], x["b"]), 1)
    torch.testing.assert_close(made(**x)[:, 0], net.head(net.two((net.one(h) / 2).relu()).relu()))
    torch.testing.assert_close(made(**x)[:, 1], net.head((net.two(net.one(h).relu()) / 2).relu()))


def test_peers_of_a_group_stay_frozen_and_in_eval_mode() -> None:
    made, peers, _ = group(0.0)
    made.train()
    assert not any(m.training for m in peers.modules())
    assert made.masks.training
    assert not any(p.requires_grad for p in peers.parameters())


def test_the_last_layers_before_the_logits_are_masked() -> None:
    peers, x = nn.ModuleDict({"b": Net("b")}), {"b": rand(2, 4)}
    assert list(features_of(peers["b"], x)) == ["one", "two"]
    assert chosen(peers, x, 1, ()) == [("b", "two", (2, 8))]
    assert chosen(peers, x, 2, ("b.one",)) == [("b", "one", (2, 8))]
    with pytest.raises(UsageError, match=r"'b' has 2 before its logits"):
        chosen(peers, x, 3, ())
    with pytest.raises(UsageError, match=r"at='b\.head'"):
        chosen(peers, x, 2, ("b.head",))


def test_layers_that_run_twice_are_not_masked() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(self.one(self.one(x))))

    assert list(features_of(Twice(), rand(2, 4))) == ["two"]


def test_the_gate_is_affine() -> None:
    gate, zero = Gate(3, 4, False), torch.zeros(5, 3)
    a, b = rand(5, 3), rand(5, 3, seed=1)
    torch.testing.assert_close(gate(a) + gate(b), gate(a + b) + gate(zero), rtol=1e-4, atol=1e-5)
    assert gate.inner.out_features == 6
    assert Gate(3, 4, True)(rand(5, 3, 6, 8)).shape == (5, 4)


# --- the stages ----------------------------------------------------------------------------------


def asked(objective: Any, s: Tensor, t: Tensor | None = None, **at: int) -> dict[str, float]:
    """Terms on given logits, with the parts that it builds."""
    batch = Batch(x={"a": rand(6, 4), "b": rand(6, 4, seed=1)}, y=torch.arange(6) % 3)
    sides = SimpleNamespace(logits=s), SimpleNamespace(logits=t)
    torch.manual_seed(0)
    parts = objective.build(*sides, batch, Facts(6, 3, 10, 1))
    clock = Clock(0, "fit", at.get("step", 0), 10, 1)
    return {k: float(v) for k, v in objective.terms(parts, *sides, batch, clock).items()}


def test_together_has_all_six_pairs() -> None:
    torch.manual_seed(0)
    peers = nn.ModuleDict({"both": Net("a", "b"), "b": Net("b")})
    s, x = rand(6, 3), {"a": rand(6, 4), "b": rand(6, 4, seed=1)}
    zs = [s, peers["both"](**x), peers["b"](**x)]
    pairs = [(p, q) for i, p in enumerate(zs) for j, q in enumerate(zs) if i != j]
    assert len(pairs) == 6
    mutual = sum(slow_kd(p[b], q[b], 4.0) for p, q in pairs for b in range(6)) / 6
    label = sum(float(-z.detach().log_softmax(1)[b, b % 3]) for z in zs for b in range(6)) / 6
    found = asked(Together(MSTDistill(mutual=0.5, label=2.0), peers), s)
    assert found["mutual"] == pytest.approx(0.5 * mutual, rel=1e-4)
    assert found["label"] == pytest.approx(2 * label, rel=1e-4)


def test_the_third_stages_terms_and_their_schedules() -> None:
    s, t = rand(6, 3), rand(6, 4, 3, seed=1)
    torch.manual_seed(0)
    g = Gate(3, 4, False)(s)
    wanted = {
        "label": float(nn.functional.cross_entropy(s, torch.arange(6) % 3)),
        "kd": sum(slow_kd(s[b], t[b, int(g[b].argmax())], 4.0) for b in range(6)) / 6,
        "balance": float((torch.full((4,), 0.25) * (0.25 / g.softmax(1).mean(0)).log()).sum()),
    }
    assert asked(Routed(MSTDistill()), s, t) == pytest.approx(wanted, rel=1e-4)
    later = asked(Routed(MSTDistill(kd_every=2, balance_every=3)), s, t, step=4)  # epoch 4
    wanted["kd"] *= 0.5**2
    wanted["balance"] *= 0.9**2
    assert later == pytest.approx(wanted, rel=1e-4)


def moved(seen: Passes, before: dict[str, Tensor]) -> set[str]:
    now = seen.step.state_dict()
    return {n for n, v in before.items() if not torch.equal(v, now[n])}


def test_each_stage_moves_what_it_trains_and_nothing_else() -> None:
    starts: list[tuple[Passes, dict[str, Tensor]]] = []

    def begin(seen: Passes) -> None:
        starts.append((seen, {n: v.clone() for n, v in seen.step.state_dict().items()}))
        if len(starts) == 3:  # the group as the second stage gave it
            group.update({n: v.clone() for n, v in seen.teacher.module.state_dict().items()})

    group: dict[str, Tensor] = {}
    on = task()
    with Run(on, 3, device="cpu", on_fit=begin):
        result = MSTDistill(rate=0.01).run(on)
    assert [seen.stage for seen, _ in starts] == ["together", "masks", "student"]
    (one, _), (two, before_two), (three, before_three) = starts
    assert {n.split(".")[1] for n in moved(two, before_two)} == {"masks"}
    peers = {n: v for n, v in group.items() if n.startswith("peers.")}
    trained = one.parts.state_dict()
    assert all(torch.equal(v, trained[n.removeprefix("peers.")]) for n, v in peers.items())
    assert moved(three, before_three) == set(before_three)  # the student and the gate
    after = three.teacher.module.state_dict()
    assert all(torch.equal(v, after[n]) for n, v in group.items())
    assert three.student is one.student
    assert result.model is one.student


def test_the_student_goes_on_from_the_first_stage_with_fresh_peers() -> None:
    seen, _ = fits(MSTDistill(kd=0.0, label=1.0, balance=0.0, rate=0.01), task())
    first = {n: v for n, v in seen[0].step.state_dict().items() if n.startswith("parts")}
    again, _ = fits(MSTDistill(kd=0.0, label=1.0, balance=0.0, rate=0.01), task())
    assert all(torch.equal(v, again[0].step.state_dict()[n]) for n, v in first.items())


def test_masks_are_kept_at_their_best_on_valid() -> None:
    on = replace(task(), budget=replace(task().budget, steps=30))
    held, found = on.valid, []
    held["x"] = {name: rand(12, 4, seed=7) for name in "ab"}  # unlike what is trained on

    def begin(seen: Passes) -> None:
        if seen.stage == "student":  # which is still as the masks saw it
            seen.student.eval()
            s, z = seen.student(held["x"]["a"]), seen.teacher.module(**held["x"])
            seen.student.train()
            losses = [slow_kd(z[b, k], s[b], 4.0) for b in range(12) for k in range(4)]
            found.append(sum(losses) / 12)

    with Run(on, 3, device="cpu", on_fit=begin):
        log = MSTDistill(rate=0.03).run(on).log
    rows = [r["valid"]["kd"] for r in log if r["stage"] == "masks" and "valid" in r]
    assert len(rows) == 10  # an epoch is three steps
    assert min(rows) < rows[-1]  # or this shows nothing
    assert found == [pytest.approx(min(rows), rel=1e-4)]


def test_without_masks_the_peers_teach_as_they_are() -> None:
    seen, result = fits(MSTDistill(mask=0.0), task())
    assert [s.stage for s in seen] == ["together", "student"]
    x = task().train["x"]
    peers = seen[0].parts
    both = torch.stack((peers["both"](**x), peers["b"](**x)), 1)
    torch.testing.assert_close(seen[1].teacher.module(**x), both)
    assert set(result.report) == {"share_both", "share_b", "score_both", "score_b"}


def test_the_report_counts_who_teaches() -> None:
    seen, result = fits(MSTDistill(k=2), task())
    shares = [v for n, v in result.report.items() if n.startswith("share_")]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(1.0)
    gate, student = seen[2].parts.eval(), seen[2].student.eval()
    chosen_by = gate(student(task().train["x"]["a"])).topk(2, 1).indices.flatten().tolist()
    assert shares == pytest.approx([chosen_by.count(k) / 96 for k in range(4)])


def test_maps_of_classes() -> None:
    """Segmentation: logits and labels at each place."""

    class Dense(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            self.names = names
            self.one = nn.Conv2d(len(names), 6, 3, padding=1)
            self.two, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

        def forward(self, **x: Tensor) -> Tensor:
            return self.head(self.two(self.one(torch.cat([x[n] for n in self.names], 1))).relu())

    x = {"a": rand(16, 1, 6, 6), "b": rand(16, 1, 6, 6, seed=1)}
    on = task(
        train={"x": x, "y": (x["b"][:, 0] > 0).long()}, valid=None, test=None,
        student=lambda: nn.Conv2d(1, 3, 3, padding=1),
        data={"peers": {"both": lambda: Dense("a", "b"), "b": lambda: Dense("b")}},
    )  # fmt: skip
    seen, result = fits(MSTDistill(), on)
    assert seen[1].student.masks[0].reduce[0].stride == (2, 2)
    assert sum(v for n, v in result.report.items() if n.startswith("share_")) == pytest.approx(1.0)


def test_sentences() -> None:
    with pytest.raises(Missing, match="peers"):
        fits(MSTDistill(), task(data={}))
    with pytest.raises(UsageError, match=r"best k=5 of its teachers, and there are 4"):
        fits(MSTDistill(k=5), task())


def test_rates() -> None:
    seen, _ = fits(MSTDistill(), task())
    rates = [
        {names[0].split(".")[0]: (spec.name, spec.lr) for names, spec, _ in s.phases[0][1].groups}
        for s in seen
    ]
    adam, own = ("adam", 1e-4), ("adam", 1e-2)
    assert rates == [
        {"student": own, "parts": adam},
        {"student": adam},
        {"student": own, "parts": adam},
    ]
    seen, _ = fits(MSTDistill(rate=0.0, together_share=0.5, masks_share=2.0), task())
    assert [s.steps for s in seen] == [2, 8, 4]
    assert all(spec.lr == 1e-2 for s in seen for _, spec, _ in s.phases[0][1].groups)


def test_masks_bring_teachers_nearer_to_the_student() -> None:
    """What the second stage is for, on the world of pairs."""
    on = worlds.make("pairs(teacher='none')", tiny=True)
    seen, _ = fits(MSTDistill(rate=1e-2), on)
    log: Any = seen[1]
    losses = [row["terms"]["mask"] for row in log.log if "terms" in row]
    assert len(losses) == 24
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
