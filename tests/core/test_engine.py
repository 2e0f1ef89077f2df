"""The loop against loops written by hand, and what it refuses."""

import copy
import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _probes import Net, X, Y, net
from torch import nn

import limbeck
from limbeck.core.data import Batches, Epochs
from limbeck.core.engine import fit, rate
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Given, Mean, Objective
from limbeck.core.objectives import Labels
from limbeck.core.rng import generator, seed_of
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Score, Task
from limbeck.core.teachers import Frozen, Nobody
from limbeck.core.updates import Phase, Surgery
from limbeck.errors import Missing, NonFinite, UsageError

SGD = Optimiser("sgd", 0.1)


class Plain(nn.Module):
    """Without anything random or measured over a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x):
        return {"logits": self.head(self.body(x).tanh())}


def plain():
    torch.manual_seed(5)
    return Plain()


@dataclass(frozen=True)
class Soft(Objective):
    def terms(self, parts, s, t, batch, clock):
        label = 0.3 * F.cross_entropy(s.logits, batch.y)
        return {"label": label, "kd": 0.7 * kl(s.logits, t.logits, 3.0).mean()}


def train(objective, student, teacher=None, *, seed=0, run=None, batches=None, task=None, **budget):
    """A fit, in memory unless a run is given."""
    plan = Budget(**{"batch": 16, "steps": 1, "optimiser": SGD, "schedule": "constant", **budget})
    with run or Run(None, seed, device="cpu"):
        return fit(
            objective,
            student,
            teacher or Nobody(),
            batches or Epochs((X, Y)),
            name="fit",
            budget=plan,
            task=task,
        )


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- the whole loop ---


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_fit_is_the_loop_one_would_write(kind):
    teacher, mine = net("teacher", 24), net("student")
    theirs = copy.deepcopy(mine)
    spec = Optimiser(kind, 0.05, weight_decay=0.01, momentum=0.9 if kind == "sgd" else 0.0)
    train(
        Soft(),
        theirs,
        Frozen(teacher),
        seed=11,
        steps=15,
        optimiser=spec,
        schedule="cosine",
        warmup=0.2,
        clip=0.7,
    )

    teacher.eval()
    mine.train()
    if kind == "sgd":
        optimiser = torch.optim.SGD(mine.parameters(), 0.05, 0.9, weight_decay=0.01)
    else:
        optimiser = torch.optim.AdamW(mine.parameters(), 0.05, weight_decay=0.01)
    for step in range(15):
        epoch, place = divmod(step, 6)  # 96 samples, 16 a step
        order = torch.randperm(96, generator=generator(11, epoch, "order"))
        rows = order[place * 16 : place * 16 + 16]
        torch.manual_seed(seed_of(11, "fit", step, "", 0, 0))
        z = mine(X[rows])["logits"]
        with torch.no_grad():
            target = teacher(X[rows])["logits"]
        p, q = (z / 3).log_softmax(1), (target / 3).log_softmax(1)
        soft = 9 * F.kl_div(p, q, reduction="none", log_target=True).sum(1).mean()
        loss = 0.3 * F.cross_entropy(z, Y[rows]) + 0.7 * soft
        warm = (step + 1) / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 12)) / 2
        optimiser.param_groups[0]["lr"] = 0.05 * warm
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(mine.parameters(), 0.7)
        optimiser.step()
    assert equal(weights(theirs), weights(mine))  # buffers of BatchNorm too


def test_the_log_tells_each_term_and_the_rate():
    fitted = train(Labels(), plain(), steps=3, schedule="linear")
    assert [row["step"] for row in fitted.log] == [0, 1, 2]
    assert [row["lr"] for row in fitted.log] == pytest.approx([0.1, 0.2 / 3, 0.1 / 3])
    rows = torch.randperm(96, generator=generator(0, 0, "order"))[:16]
    first = F.cross_entropy(plain()(X[rows])["logits"], Y[rows])
    assert fitted.log[0]["terms"] == {"label": first.item()}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]),
        ("step", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
    ],
)
def test_schedules(schedule, expected):
    assert [rate(schedule, i, 8, 0.0) for i in range(8)] == pytest.approx(expected)
    warm = [rate(schedule, i, 10, 0.2) for i in range(10)]
    assert warm == pytest.approx([0.5, 1.0, *expected])


def test_a_phase_s_own_schedule_differs_from_the_budget_s():
    own = {"student.head": Optimiser("sgd", 0.2, schedule="constant")}
    rates = []

    class Seen(Labels):
        def update(self):
            return (Phase(optimisers=own),)

    run = Run(device="cpu", on_fit=lambda passes: rates.append(passes.phases[0][1]))
    train(Seen(), plain(), run=run, steps=4, schedule="linear")
    last = {s.lr: o.param_groups[0]["lr"] for _, s, o in rates[0].groups}
    assert last == pytest.approx({0.1: 0.1 / 4, 0.2: 0.2})


def test_epochs_become_steps_and_batches_shrink_to_the_data():
    assert len(train(Labels(), plain(), steps=None, epochs=2).log) == 12
    assert len(train(Labels(), plain(), batch=1000, steps=None, epochs=3).log) == 3
    with pytest.raises(UsageError, match="does not divide into 3 micro-batches"):
        train(Labels(), plain(), accumulate=3)


# --- micro-batches ---


def test_accumulation_equals_one_batch_where_terms_are_means():
    one, two = plain(), plain()
    teacher = Frozen(net("teacher", 24))
    train(Soft(), one, teacher, steps=10)
    train(Soft(), two, teacher, steps=10, accumulate=4)
    for k, v in weights(one).items():
        torch.testing.assert_close(two.state_dict()[k], v, rtol=1e-5, atol=1e-6)


class Ragged(Objective):
    """A cross-entropy over the samples of class 0 and 1 only."""

    def terms(self, parts, s, t, batch, clock):
        kept = batch.y < 2
        each = F.cross_entropy(s.logits, batch.y, reduction="none")
        return {"label": Mean((each * kept).sum(), kept.sum())}

    def counts(self, batch):
        return {"label": (batch.y < 2).sum()}


def test_a_mean_is_over_the_whole_step_however_it_is_cut():
    rows = torch.randperm(96, generator=generator(0, 0, "order"))[:16]
    kept = Y[rows] < 2
    cuts = kept.view(4, 4).sum(1)
    assert len(set(cuts.tolist())) > 1  # the premise: micro-batches differ in what they count
    mine = plain()
    z = mine(X[rows])["logits"]
    loss = F.cross_entropy(z[kept], Y[rows][kept])
    loss.backward()
    for k in (1, 2, 4):
        fitted = train(Ragged(), plain(), accumulate=k)
        assert fitted.log[0]["terms"]["label"] == pytest.approx(loss.item(), rel=1e-6)
        for p, q in zip(mine.parameters(), fitted.student.parameters(), strict=True):
            torch.testing.assert_close(q, p - 0.1 * p.grad, rtol=1e-5, atol=1e-6)


def test_a_mean_without_counts_is_refused_under_accumulation():
    class Silent(Ragged):
        def counts(self, batch):
            return {}

    train(Silent(), plain())
    with pytest.raises(Missing, match=r"'label' is a Mean, so counts\(\) must give"):
        train(Silent(), plain(), accumulate=2)


def test_batchnorm_ends_a_step_with_the_mean_over_its_micro_batches():
    student = net("student")
    start = weights(student)
    rows = torch.randperm(96, generator=generator(0, 0, "order"))[:16]
    ends = []
    for part in rows.split(4):
        norm = copy.deepcopy(student.norm)
        norm(student.body(X[part]))
        ends.append(norm.state_dict())
    train(Labels(), student, accumulate=4)
    assert not torch.equal(student.norm.running_mean, start["norm.running_mean"])
    for name in ("running_mean", "running_var"):
        mean = torch.stack([e[name] for e in ends]).mean(0)
        torch.testing.assert_close(getattr(student.norm, name), mean)
    assert student.norm.num_batches_tracked == 1


def test_clipping_bounds_the_whole_gradient_of_a_phase():
    student = plain()
    before = torch.cat([p.detach().flatten().clone() for p in student.parameters()])
    train(Labels(label=100.0), student, clip=0.5)
    after = torch.cat([p.detach().flatten() for p in student.parameters()])
    assert (before - after).norm().item() == pytest.approx(0.1 * 0.5, rel=1e-4)


# --- phases ---


class Told(Objective):
    """Notes where it is asked; its critic is a part."""

    def __init__(self, phases):
        self.phases, self.told = phases, []

    def update(self):
        return self.phases

    def build(self, s, t, batch, facts):
        parts = nn.Module()
        parts.critic = nn.Linear(4, 1)
        self.start = weights(parts.critic)
        parts.register_buffer("moved", torch.zeros(()))
        return parts

    def terms(self, parts, s, t, batch, clock):
        self.told.append((clock.step, clock.phase, clock.repeat, tuple(batch.index.tolist())))
        return {"gap": parts.critic(s.logits).square().mean()}

    def observe(self, parts, s, t, batch):
        self.told.append(("observe", parts.critic.training, torch.is_grad_enabled()))
        return {"rows": batch.index, "one": batch.index[0]}

    def after_step(self, parts, seen, clock):
        self.told.append(("after", clock.phase, {k: v.tolist() for k, v in seen.items()}))
        parts.moved += 1


def test_phases_share_a_batch_or_take_fresh_ones():
    phases = (
        Phase("critic", ("parts",), repeat=2, fresh=True),
        Phase("student", ("student",)),
    )
    objective = Told(phases)
    student = plain()
    fitted = train(objective, student, steps=2)
    asked = [row for row in objective.told if isinstance(row[0], int)]
    assert [row[:3] for row in asked] == [
        (step, *rest)
        for step in range(2)
        for rest in (("critic", 0), ("critic", 1), ("student", 0))
    ]
    order = torch.randperm(96, generator=generator(0, 0, "order")).tolist()
    batches = [tuple(order[i * 16 : i * 16 + 16]) for i in range(6)]
    # the batch that phases share is drawn first, then one for each fresh repeat
    assert [row[3] for row in asked] == [batches[i] for i in (1, 2, 0, 4, 5, 3)]
    assert [r[0] for r in objective.told].count("after") == 2
    assert fitted.parts.moved == 2


def test_a_phase_moves_only_what_it_trains():
    student = plain()
    before = weights(student)
    objective = Told((Phase("critic", ("parts",)),))
    fitted = train(objective, student)
    assert equal(weights(student), before)
    assert not equal(weights(fitted.parts.critic), objective.start)
    objective = Told((Phase("student", ("student.head",)),))
    fitted = train(objective, student)
    assert equal(weights(fitted.parts.critic), objective.start)
    after = weights(student)
    moved = [k for k in after if not torch.equal(after[k], before[k])]
    assert moved == ["head.weight", "head.bias"]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_look_sees_the_whole_step_before_anything_moves(accumulate):
    phases = (Phase("rank", train=()), Phase("go"))
    objective = Told(phases)
    student = net("student")
    before = weights(student)
    seen_at_look = []

    class Looking(Told):
        def after_step(self, parts, seen, clock):
            super().after_step(parts, seen, clock)
            if clock.phase == "rank":
                seen_at_look.append(weights(student))

    objective = Looking(phases)
    train(objective, student, accumulate=accumulate)
    rows = torch.randperm(96, generator=generator(0, 0, "order"))[:16]
    kinds = [row if row[0] == "observe" else row[:2] for row in objective.told]
    assert kinds == [
        *[("observe", False, False)] * accumulate,  # eval mode, no gradient
        ("after", "rank"),
        *[(0, "go")] * accumulate,
        ("after", ""),
    ]
    after_look, after_step = (r[2] for r in objective.told if r[0] == "after")
    assert after_look["rows"] == rows.tolist()
    assert after_look["one"] == rows[:: 16 // accumulate].tolist()
    assert after_step == {}
    assert equal(seen_at_look[0], before)  # the statistics of BatchNorm too


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((Phase("a"), Phase("a")), "two phases are called 'a'"),
        ((Phase("a"), Phase("b", train=())), "last phase of a step must train something"),
        ((Phase("a", train=(), repeat=2), Phase("b")), "'a' has repeat=2"),
        ((Phase("a", ("student", "parts.critci")),), "did you mean 'parts.critic'"),
        ((Phase("a", ("student",), optimisers={"parts": SGD}),), r"optimisers for \['parts'\]"),
    ],
)
def test_updates_that_cannot_work_are_refused(phases, message):
    with pytest.raises(UsageError, match=message):
        train(Told(phases), plain())


# --- batches ---


def test_batches_are_asked_with_the_student_in_eval_mode_and_seeded():
    told = []

    class OnPolicy(Batches):
        samples = 96

        def first(self):
            return Epochs((X, Y)).first()

        def __call__(self, student, teacher, clock):
            drawn = torch.rand(()).item()
            told.append((student.training, torch.is_grad_enabled(), drawn))
            return Epochs((X, Y))(student, teacher, clock)

    student = net("student")
    train(Labels(), student, batches=OnPolicy(), accumulate=2, steps=2)
    assert {row[:2] for row in told} == {(False, False)}
    expected = []
    for draw, n in ((0, 0), (0, 1), (1, 0), (1, 1)):
        torch.manual_seed(seed_of(0, "fit", "batch", draw, n))
        expected.append(torch.rand(()).item())
    assert [row[2] for row in told] == expected
    assert student.training  # as it came


# --- what is watched, kept and put back ---


class Scripted:
    """A score that gives what it was told to, whatever the model."""

    def __init__(self, values):
        self.values, self.asked = list(values), []

    def __call__(self, logits, y):
        self.asked.append(len(y))
        return self.values[len(self.asked) - 1]


class Untouchable(torch.utils.data.Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, i):
        raise AssertionError("the test set was read")


@pytest.mark.parametrize("higher", [True, False])
def test_stopping_and_keeping_the_best_by_valid_alone(higher):
    values = [0.1, 0.5, 0.4, 0.5, 0.9]
    score = Scripted([v if higher else -v for v in values])
    task = Task(
        None,
        plain,
        (X, Y),
        valid=(X[:20], Y[:20]),
        test=Untouchable(),
        score=Score("scripted", higher, score),
    )
    states = []
    run = Run(device="cpu", after_step=lambda stage, done: states.append(weights(student)))
    student = plain()
    fitted = train(
        Labels(), student, run=run, task=task, steps=50, evaluate=2, patience=2, keep="best"
    )
    assert score.asked == [20] * 4  # the gain of 0.5 over 0.5 is none
    assert len(states) == 7  # and the eighth step was the last
    assert equal(weights(student), states[3])  # after four steps: the best
    assert not equal(states[3], states[6])
    assert [r["valid"]["scripted"] for r in fitted.log if "valid" in r] == score.values[:4]


def test_watching_needs_a_valid_set():
    with pytest.raises(Missing, match="but the task has no valid set"):
        train(Labels(), plain(), task=Task(None, plain, (X, Y)), steps=2, evaluate=1)


def test_the_callers_generators_are_put_back():
    def state():
        numpy_state = np.random.get_state()
        return torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate()

    before = state()
    train(Labels(), net("student"), steps=2)
    assert state() == before


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_hooks_are_put_back(fails):
    student = net("student")
    student.norm.eval()
    modes = [m.training for m in student.modules()]

    class Failing(Labels):
        def terms(self, parts, s, t, batch, clock):
            assert s.model.norm.training
            if fails:
                raise RuntimeError("a bug of one's own")
            return super().terms(parts, s, t, batch, clock)

    task = Task(None, student, None, taps={"mid": (None, "body")})
    try:
        train(Failing(), student, task=task)
    except RuntimeError:
        assert fails
    assert [m.training for m in student.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())


# --- precision ---


class Peeking(Objective):
    """Looks without gradient first, at a student whose weights autocast then has cast."""

    def terms(self, parts, s, t, batch, clock):
        with torch.no_grad():
            s(batch).logits  # noqa: B018
        assert s.logits.dtype == torch.bfloat16
        return {"label": F.cross_entropy(s.logits.float(), batch.y)}


def test_bfloat16_trains_also_after_a_look_without_gradient():
    student = plain()
    before = weights(student)
    fitted = train(Peeking(), student, precision="bf16", steps=60)
    assert all(p.dtype == torch.float32 for p in student.parameters())
    assert not any(torch.equal(v, before[k]) for k, v in weights(student).items())
    losses = [row["terms"]["label"] for row in fitted.log]
    assert losses[-1] < 0.8 * losses[0]


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(UsageError, match="'fp16' needs a GPU; use 'bf16'"):
        train(Labels(), plain(), precision="fp16")


# --- numbers that are none ---


class Breaks(Objective):
    """Turns into what it is told at a step."""

    def __init__(self, step, value):
        self.step, self.value = step, value

    def terms(self, parts, s, t, batch, clock):
        label = F.cross_entropy(s.logits, batch.y)
        other = s.logits.mean() * (self.value if clock.step == self.step else 0.0)
        return {"label": label, "other": other}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_term_that_is_not_finite_stops_the_run_before_the_weights(value, tmp_path):
    student, saved = plain(), []
    run = Run(
        folder=tmp_path,
        device="cpu",
        checkpoint=2,
        after_step=lambda *_: saved.append(weights(student)),
    )
    with pytest.raises(NonFinite) as error:
        train(Breaks(5, value), student, run=run, steps=9)
    said = str(error.value)
    assert "the term 'other' turned" in said
    assert "at step 5 of 'fit'" in said
    assert f"the last good checkpoint is step 4 in {tmp_path}" in said
    assert "\n" not in said
    assert equal(weights(student), saved[4])
    with pytest.raises(NonFinite, match="there is no checkpoint yet"):
        train(Breaks(0, value), plain())


def test_inputs_that_are_not_finite_are_named():
    x = X.clone()
    x[:] = math.nan
    with pytest.raises(NonFinite, match="inputs of this batch are not finite: clean the data"):
        train(Labels(), plain(), batches=Epochs((x, Y)))


def test_weights_that_a_gradient_broke_are_not_called_good(tmp_path):
    class Root(Objective):
        def terms(self, parts, s, t, batch, clock):
            zero = (s.logits * 0).square().sum().sqrt()  # 0, with a gradient of 0 * infinity
            return {"root": zero if clock.step == 3 else s.logits.mean()}

    run = Run(folder=tmp_path, device="cpu", checkpoint=2)
    with pytest.raises(NonFinite, match=r"is not finite after step 3 of 'fit'.*checkpoint is step"):
        train(Root(), plain(), run=run, steps=4)


# --- objectives that break the contract ---


class Says(Objective):
    def __init__(self, answer):
        self.answer = answer

    def terms(self, parts, s, t, batch, clock):
        return self.answer(s.logits)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda z: {}, "gave no terms"),
        (lambda z: {"a": z.mean(1)}, r"'a' is a tensor of shape \(16,\)"),
        (lambda z: {"a": 1.0}, "'a' is a float"),
        (lambda z: {"a": z.bfloat16().mean()}, "'a' is torch.bfloat16; compute it in float32"),
        (lambda z: {"a": Mean(z.sum(1), 3)}, r"'a' is a tensor of shape \(16,\)"),
        (
            lambda z: {"a": Given({"student.haed.bias": torch.zeros(4)})},
            "'student.haed.bias', which is no parameter; did you mean 'student.head.bias'",
        ),
        (
            lambda z: {"a": Given({"student.head.bias": torch.zeros(1)})},
            r"a gradient of shape \(1,\) of 'student.head.bias', which is \(4,\)",
        ),
    ],
)
def test_answers_that_are_no_terms_are_refused(answer, message):
    with pytest.raises(UsageError, match=message):
        train(Says(answer), plain())


def test_asking_must_not_change_parameters_or_buffers():
    class Moving(Labels):
        def terms(self, parts, s, t, batch, clock):
            with torch.no_grad():
                s.model.head.bias.mul_(1.0)
            return super().terms(parts, s, t, batch, clock)

    with pytest.raises(UsageError, match=r"changed 'student.head.bias'.*moves in after_step"):
        train(Moving(), plain())


def test_build_must_give_a_module():
    class Wrong(Labels):
        def build(self, s, t, batch, facts):
            return {"head": nn.Linear(2, 2)}

    with pytest.raises(UsageError, match="build gave a dict"):
        train(Wrong(), plain())


def test_facts_tell_what_parts_are_sized_by():
    seen = []

    class Sized(Labels):
        def build(self, s, t, batch, facts):
            assert not s.model.training
            assert not torch.is_grad_enabled()
            seen.append(facts)
            seen.append(torch.rand(()).item())  # drawn by place
            return super().build(s, t, batch, facts)

    for seed in range(2):
        torch.manual_seed(seed)
        train(Sized(), net("student"), steps=None, epochs=2)
    facts = seen[0]
    assert (facts.samples, facts.classes, facts.steps, facts.steps_per_epoch) == (96, 4, 12, 6)
    assert torch.equal(facts.labels, Y)
    assert seen[1] == seen[3]


def test_surgery_and_the_loss_scaling_of_float16_are_not_mixed():
    class Scaled(Labels):
        def update(self):
            return (Phase(join=Surgery()),)

    run = Run(device="cpu")
    run.devices.scaler = object()
    with pytest.raises(UsageError, match="not defined with fp16's loss scaling"):
        train(Scaled(), plain(), run=run)


def test_a_task_can_be_given_to_one_fit():
    seen = []

    class Reads(Labels):
        def terms(self, parts, s, t, batch, clock):
            seen.append(s.embedding.shape)
            return super().terms(parts, s, t, batch, clock)

    task = Task(None, plain, (X, Y), taps={"embedding": (None, "head:in")})
    student = plain()
    train(Reads(), student, task=replace(task, budget=Budget(steps=1)))
    assert seen == [(16, 6)]


def test_nets_of_the_probes_hold_what_they_should():
    assert isinstance(Net().norm, nn.BatchNorm1d)


def test_norms_are_of_each_terms_gradient_in_the_student_over_the_whole_step():
    """Against the gradient of a weighted term by hand, for one micro-batch and for two."""

    class Two(Objective):
        def terms(self, parts, s, t, batch, clock):
            fixed = (parts.scale * torch.ones(())).sum()
            return {
                "near": 3 * F.cross_entropy(s.logits, batch.y),
                "parts": fixed,  # does not reach the student
            }

        def build(self, s, t, batch, facts):
            parts = nn.Module()
            parts.scale = nn.Parameter(torch.ones(2))
            return parts

    x, y = torch.randn(8, 5, generator=torch.Generator().manual_seed(3)), torch.arange(8) % 3
    student = nn.Linear(5, 3)

    def by_hand(rows):
        loss = 3 * F.cross_entropy(student(x[rows]), y[rows])
        grads = torch.autograd.grad(loss, list(student.parameters()))
        return float(sum((g**2).sum() for g in grads) ** 0.5)

    order = torch.randperm(8, generator=generator(0, 0, "order"))
    for accumulate, expected in (
        (1, by_hand(order)),
        (2, (by_hand(order[:4]) + by_hand(order[4:])) / 2),
    ):
        budget = Budget(steps=1, batch=8, accumulate=accumulate)
        task = Task(None, student, (x, y), budget=budget)
        log = fit(
            Two(), copy.deepcopy(student), Nobody(), task.batches(), name="fit", task=task
        ).log
        assert log[0]["norms"]["near"] == pytest.approx(expected, rel=1e-5)
        assert log[0]["norms"]["parts"] == 0


def oversized(batch):
    task = Task(plain(), plain, (X, Y), budget=Budget(steps=2, batch=batch))
    return limbeck.run("kd", task, baseline=True, progress="text", device="cpu")


def test_a_batch_larger_than_the_set_is_said_once(capsys):
    result = oversized(100_000)
    assert [stage["batch"] for stage in result.facts["stages"]] == [len(X), len(X)]
    told = (
        f"a batch of 100,000 samples was asked for, and there are {len(X)}: a step takes {len(X)}"
    )
    assert capsys.readouterr().err.splitlines().count(told) == 1


def test_a_batch_as_large_as_the_set_is_not_said(capsys):
    oversized(len(X))
    assert "a batch of" not in capsys.readouterr().err
