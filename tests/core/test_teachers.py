"""Teachers: what each gives, how it moves, and that models are left as they were."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.cache import CacheWriter
from limbeck.core.crowd import Crowd
from limbeck.core.data import Batch, Epochs
from limbeck.core.ema import Ema
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective
from limbeck.core.objectives import Labels
from limbeck.core.rng import seed_of
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Score, Task
from limbeck.core.teacher import Setting
from limbeck.core.teachers import BlackBox, Cached, Frozen, Nobody, fingerprint_of
from limbeck.core.updates import Phase
from limbeck.core.views import Look
from limbeck.errors import Missing, UsageError

X = torch.randn(48, 5, generator=torch.Generator().manual_seed(3))
Y = X[:, :3].argmax(1)
CLOCK = Clock(0, "fit", 0, 5, 3, batch=8)


class Net(nn.Module):
    """BatchNorm, dropout and a tied pair are in it."""

    def __init__(self, width=6):
        super().__init__()
        self.one = nn.Linear(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)
        self.two, self.tied = nn.Linear(width, 3), nn.Linear(width, 3)
        self.tied.weight = self.two.weight

    def forward(self, x):
        h = self.norm(self.one(x)).relu()
        return {"embedding": h, "logits": self.two(self.drop(h)) + self.tied(h)}


def made(seed, width=6):
    torch.manual_seed(seed)
    return Net(width)


class KD(Objective):
    def terms(self, parts, s, t, batch, clock):
        return {"kd": kl(s.logits, t.logits).mean()}


def watched(**kwargs):
    """A run that shows its latest fit."""
    run = Run(device="cpu", on_fit=lambda passes: setattr(run, "fitter", passes), **kwargs)
    return run


def train(objective, teacher, student=None, task=None, after=None, batches=None, **budget):
    plan = Budget(**{"batch": 8, "steps": 1, "optimiser": Optimiser("sgd", 0.1), **budget})
    run = watched(after_step=after or (lambda *_: None))
    data = batches or Epochs((X, Y))
    with run:
        student = student or made(1)
        fitted = fit(objective, student, teacher, data, name="fit", budget=plan, task=task)
    fitted.fitter = run.fitter
    return fitted


def batch_of(rows):
    return Batch(x=X[rows], y=Y[rows], index=torch.arange(48)[rows])


# --- frozen ---


@pytest.mark.parametrize("graph", [False, True])
def test_a_frozen_teacher_is_asked_in_eval_mode_and_left_as_it_was(graph):
    module = made(2)
    module.norm.eval()
    module.two.bias.requires_grad_(False)
    modes = [m.training for m in module.modules()]
    required = [p.requires_grad for p in module.parameters()]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    seen = []

    class Watching(KD):
        def terms(self, parts, s, t, batch, clock):
            z = t(s.logits @ torch.ones(3, 5)).logits
            seen.append((t.model.training, z.requires_grad, z.grad_fn is not None))
            seen.append([p.requires_grad for p in t.model.parameters()])
            return {"kd": kl(s.logits, t.logits).mean() + 0 * z.mean()}

    train(Watching(), Frozen(module, graph=graph))
    assert seen[0] == (False, graph, graph)
    assert seen[1] == ([False] * len(required) if graph else required)
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == required
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_failing_fit_leaves_the_teacher_as_it_was_too():
    class Failing(KD):
        def terms(self, parts, s, t, batch, clock):
            raise RuntimeError(str(t.logits.shape))

    module = made(2)
    with pytest.raises(RuntimeError, match=r"\[8, 3\]"):
        train(
            Failing(), Frozen(module), task=Task(None, made(1), None, taps={"mid": ("one", None)})
        )
    assert all(m.training for m in module.modules())
    assert not any(m._forward_hooks for m in module.modules())


def test_a_gradient_through_the_teacher_at_the_students_own_point():
    module, student = made(2).eval(), made(1)

    class Through(Objective):
        def asks(self):
            return ("teacher_graph",)

        def terms(self, parts, s, t, batch, clock):
            point = s.logits @ torch.ones(3, 5)
            return {"score": t(point).logits.square().mean()}

    rows = train(Through(), Frozen(module), copy.deepcopy(student))
    numbers = rows.fitter.batches.numbers(CLOCK, 0, 0)[1]
    mine = copy.deepcopy(student).train()
    torch.manual_seed(seed_of(0, "fit", 0, "", 0, 0))
    loss = module(mine(X[numbers])["logits"] @ torch.ones(3, 5))["logits"].square().mean()
    loss.backward()
    for p, q in zip(mine.parameters(), rows.student.parameters(), strict=True):
        torch.testing.assert_close(q, p - 0.1 * p.grad)
        assert p.grad.any()


def test_early_exit_in_a_fit_and_an_unplanned_ask():
    calls = []

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                calls.append(i)
                x = layer(x)
            return x

    class Asks(Objective):
        def terms(self, parts, s, t, batch, clock):
            del calls[:]
            told = t.low.mean() + (t.logits.mean() if clock.step == 3 else 0)
            counts.append(list(calls))
            return {"a": s.logits.mean() + 0 * told}

    counts = []
    torch.manual_seed(0)
    task = Task(None, made(1), None, taps={"low": ("layers.1", None)})
    train(Asks(), Frozen(Deep()), task=task, steps=7)
    whole, short = [0, 1, 2, 3], [0, 1]
    # the first step has no plan; the fourth asks beyond it and runs once more, in full; the fifth
    # is planned from that; then the plan is narrow again
    assert counts == [whole, short, short, short + whole, whole, short, short]


def test_nobody_says_so():
    with pytest.raises(Missing, match=r"asked for 'logits'.*this task has no teacher"):
        train(KD(), Nobody())


def test_readers_stand_before_each_side():
    task = Task(
        None,
        made(1),
        None,
        readers={"teacher": lambda x: x["wide"], "student": lambda x: x["wide"] * 2},
    )
    seen = []

    class Reads(KD):
        def terms(self, parts, s, t, batch, clock):
            seen.append((t.logits, s.model.one(batch.x["wide"] * 2), batch.index))
            return super().terms(parts, s, t, batch, clock)

    module = made(2)
    train(Reads(), Frozen(module), task=task, batches=Epochs({"wide": X, "other": X, "y": Y}))
    logits, _, index = seen[0]
    assert torch.equal(logits, module.eval()(X[index])["logits"])


# --- moving average ---


def ema_of(teacher):
    return {k: v.clone() for k, v in teacher._copies.state_dict().items()}


@pytest.mark.parametrize("when", ["after", "before"])
def test_a_moving_average_by_loops(when):
    student = made(1)
    states, copies = [student.state_dict()], []
    states[0] = {k: v.clone() for k, v in states[0].items()}
    run = watched()

    class Noting(KD):
        def terms(self, parts, s, t, batch, clock):
            copies.append(ema_of(run.fitter.teacher))
            return super().terms(parts, s, t, batch, clock)

    def note(*_):
        states.append({k: v.clone() for k, v in student.state_dict().items()})

    run.after_step = note
    plan = Budget(batch=8, steps=4, optimiser=Optimiser("sgd", 0.1))
    with run:
        fit(Noting(), student, Ema(0.8, when=when), Epochs((X, Y)), name="fit", budget=plan)
    mine = {k: v.clone() for k, v in states[0].items()}
    for step in range(4):
        if step:
            for k, theirs in states[step].items():
                if theirs.is_floating_point():
                    mine[k] = mine[k] * 0.8 + theirs * (1 - 0.8)
                else:
                    mine[k] = theirs.clone()
        for k, v in mine.items():  # the tied weight is moved once
            torch.testing.assert_close(copies[step][f"student.{k}"], v)
    assert copies[3]["student.norm.num_batches_tracked"] == 3
    assert not torch.equal(copies[3]["student.norm.running_mean"], states[3]["norm.running_mean"])


def test_the_average_can_be_shipped_also_of_a_fit_that_is_read_again(tmp_path):
    task = Task(None, made(1), None, taps={"mid": ("one", "one")})
    found = []
    for _ in range(2):
        with Run(folder=tmp_path, device="cpu"):
            plan = Budget(batch=8, steps=3, optimiser=Optimiser("sgd", 0.1))
            data = Epochs((X, Y))
            fitted = fit(KD(), made(1), Ema(0.5), data, name="fit", budget=plan, task=task)
        found.append(fitted.teacher.module.state_dict())
        assert not any(m._forward_hooks for m in fitted.teacher.module.modules())
        assert not any(m.training for m in fitted.teacher.module.modules())
    one, two = found
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["one.weight"], fitted.student.one.weight)
    assert not torch.equal(one["one.weight"], made(1).one.weight)


def test_the_best_state_has_the_average_of_its_time():
    states = []

    def note(*_):
        states.append(ema_of(run.fitter.teacher))

    run = watched(after_step=note)
    values = iter([0.5, 0.9, 0.1, 0.2])
    score = Score("told", True, lambda logits, y: next(values))
    task = Task(None, made(1), None, valid=(X, Y), score=score)
    plan = Budget(batch=8, steps=4, evaluate=1, keep="best", optimiser=Optimiser("sgd", 0.1))
    with run:
        data = Epochs((X, Y))
        fitted = fit(KD(), made(1), Ema(0.5), data, name="fit", budget=plan, task=task)
    now = ema_of(fitted.teacher)
    assert all(torch.equal(now[k], states[1][k]) for k in now)
    assert not torch.equal(now["student.one.weight"], states[2]["student.one.weight"])


def test_the_decay_follows_a_cosine_from_start_to_end():
    student = nn.Linear(5, 3)
    decays = []

    class Pull(Objective):
        def terms(self, parts, s, t, batch, clock):
            return {"a": s.logits.sum() * 0.1}

    def note(*_):
        decays.append(run.fitter.teacher._copies["student"].bias[0].item())

    run = watched(after_step=note)
    start = student.bias[0].item()
    plan = Budget(batch=8, steps=5, optimiser=Optimiser("sgd", 0.01), schedule="constant")
    with run:
        teacher = Ema((0.5, 1.0))
        fit(Pull(), student, teacher, Epochs((X, Y)), name="fit", budget=plan)
    mine, theirs = start, start
    for step, seen in enumerate(decays):
        theirs -= 0.01 * 0.1 * 8
        d = 1.0 - 0.5 * (1 + math.cos(math.pi * step / 4)) / 2
        mine = d * mine + (1 - d) * theirs
        assert seen == pytest.approx(mine, abs=1e-6)
    assert len(decays) == 4


def test_what_is_shared_is_one_module_that_the_teacher_runs_in_eval_mode():
    student = made(1)
    modes = []
    student.norm.register_forward_hook(lambda m, *_: modes.append(m.training))
    before = student.norm.num_batches_tracked.item()

    class Asks(KD):
        def terms(self, parts, s, t, batch, clock):
            t.logits  # noqa: B018
            assert t.model.norm is s.model.norm
            assert t.model.one is not s.model.one
            return super().terms(parts, s, t, batch, clock)

    train(Asks(), Ema(0.5, share=("norm", "drop")), student, steps=3)
    assert modes[-6:] == [False, True] * 3
    assert student.norm.num_batches_tracked == before + 3
    with pytest.raises(Missing, match="did you mean 'norm'"):
        train(KD(), Ema(0.5, share=("nrom",)))


def test_an_average_of_parts():
    class Headed(Objective):
        def build(self, s, t, batch, facts):
            parts = nn.Module()
            parts.head = nn.Linear(6, 2)
            return parts

        def terms(self, parts, s, t, batch, clock):
            told = t.parts.head(t.embedding)
            assert not told.requires_grad
            return {"a": F.mse_loss(parts.head(s.embedding), told.detach() + 1)}

    fitted = train(Headed(), Ema(0.0, of=("student", "parts.head")), steps=2)
    assert not any(p.requires_grad for p in fitted.fitter.teacher._copies.parameters())
    with pytest.raises(Missing, match="no copy of the part 'head'; name it"):
        train(Headed(), Ema(0.5, of=("student", "parts")))
    with pytest.raises(Missing, match=r"has no module 'parts.haed'; did you mean 'parts.head'"):
        train(Headed(), Ema(0.5, of=("student", "parts.haed")))
    with pytest.raises(Missing, match=r"has no module 'parts.head'"):
        train(KD(), Ema(0.5, of=("student", "parts.head")))  # an objective without parts


# --- several teachers ---


def live(crowd, **setting):
    return crowd.attach(Setting(**setting))


@pytest.mark.parametrize("mix", ["probability", "log"])
@pytest.mark.parametrize("weights", [None, (1.0, 3.0), "by sample"])
def test_a_mixture_by_loops(mix, weights):
    one, two = made(1).eval(), made(2).eval()
    given = (
        (lambda batch, logits: torch.stack([batch.y + 1.0, 2.0 - batch.y * 0.5], 1))
        if (weights == "by sample")
        else weights
    )
    batch = batch_of(slice(0, 6))
    z = live(Crowd([one, two], mix, given)).side(batch, CLOCK).logits
    with torch.no_grad():
        logits = [m(batch.x)["logits"] for m in (one, two)]
    for i in range(6):
        w = [1.0, 1.0] if weights is None else list(weights)
        if weights == "by sample":
            w = [Y[i].item() + 1.0, 2.0 - Y[i].item() * 0.5]
        w = [v / sum(w) for v in w]
        for c in range(3):
            p = [logits[k][i].double().softmax(0)[c].item() for k in (0, 1)]
            if mix == "probability":
                expected = math.log(w[0] * p[0] + w[1] * p[1])
            else:
                expected = w[0] * math.log(p[0]) + w[1] * math.log(p[1])
            assert z[i, c].item() == pytest.approx(expected, abs=1e-5)


def test_members_are_dropped_by_sample_and_the_last_one_stays():
    fixed = [nn.Linear(5, 3) for _ in range(3)]
    for k, module in enumerate(fixed):
        nn.init.zeros_(module.weight)
        with torch.no_grad():
            module.bias.copy_(torch.eye(3)[k] * 9)
    batch = Batch(x=torch.zeros(4000, 5), index=torch.arange(4000))
    z = live(Crowd(fixed, drop=0.6)).side(batch, CLOCK).logits
    kept = (z.exp() > 0.1).sum(1)  # so many members are in the mixture
    assert kept.min() == 1
    share = [(kept == k).double().mean().item() for k in (1, 2, 3)]
    assert share == pytest.approx([3 * 0.4 * 0.36 + 0.6**3, 3 * 0.16 * 0.6, 0.4**3], abs=0.03)
    again = live(Crowd(fixed, drop=0.6)).side(batch.select(slice(1000, 2000)), CLOCK).logits
    assert torch.equal(again, z[1000:2000])  # whatever the split
    other = live(Crowd(fixed, drop=0.6)).side(batch, replace(CLOCK, step=1)).logits
    assert not torch.equal(other, z)
    weighted = live(Crowd(fixed, weights=(1.0, 0.0, 0.0), drop=0.9)).side(batch, CLOCK).logits
    assert torch.isfinite(weighted).all()
    assert (weighted.argmax(1) == 0).all()


def test_members_have_their_own_taps_and_readers():
    one, two = made(1), made(2, 9)
    crowd = Crowd([one, Frozen(two)])
    task = Task(crowd, made(3), None, taps={"mid": (("one", "norm"), "one")})
    shapes = []

    class Asks(KD):
        def terms(self, parts, s, t, batch, clock):
            shapes.append([m.mid.shape[1] for m in t.members])
            shapes.append(torch.equal(t.members[1].mid, two.norm(two.one(batch.x))))
            return super().terms(parts, s, t, batch, clock)

    train(Asks(), crowd, task=task)
    assert shapes == [[6, 9], True]
    assert all(m.training for top in (one, two) for m in top.modules())
    with pytest.raises(UsageError, match="a crowd of 2 teachers was given 3 paths"):
        train(KD(), crowd, task=replace(task, taps={"mid": (("one", "one", "one"), None)}))
    with pytest.raises(UsageError, match="no teachers"):
        Crowd([])


def test_a_module_that_is_two_members_is_left_as_it_was():
    module = made(1)
    train(KD(), Crowd([module, module]))
    assert all(m.training for m in module.modules())


def test_a_moving_member_of_a_crowd_is_stored_and_found_again():
    student = made(1)
    inner = nn.Module()
    inner.student, inner.parts = student, nn.Module()
    inner.look = Look(student, "student")
    crowd = live(Crowd([Ema(0.5), made(2)]))
    crowd.begin(inner)
    with torch.no_grad():
        student.one.bias.add_(1)
    crowd.after_step(inner, CLOCK)
    state = {k: v.clone() for k, v in crowd.state().items()}
    other = live(Crowd([Ema(0.5), made(2)]))
    other.begin(inner)
    assert not torch.equal(other.state()["0/student.one.bias"], state["0/student.one.bias"])
    other.load(state)
    assert all(torch.equal(v, state[k]) for k, v in other.state().items())


# --- answers without a model ---


def stored(folder, module, entries=("logits",)):
    module.eval()
    table = Epochs((X, Y)).table
    with CacheWriter(folder, fingerprint_of(module, table, None), samples=48) as writer:
        with torch.no_grad():
            out = module(X)
        writer.write(torch.arange(48), {k: out[k] for k in entries})
    return Cached(folder, module)


def test_a_cache_equals_the_live_teacher_for_a_step_and_refuses_other_inputs(tmp_path):
    module = made(2)
    cached = stored(tmp_path / "cache", module)
    a, b = (train(KD(), t, made(1)).student.state_dict() for t in (Frozen(module), cached))
    for k in a:  # to rounding: a pass over all samples may round otherwise than one over a batch
        torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)

    class Cropped(KD):
        def prepare(self, batch, rng):
            return batch, batch.replace(x=batch.x + 1)

    with pytest.raises(UsageError, match="shows the teacher changed inputs"):
        train(Cropped(), cached)

    class Again(KD):
        def terms(self, parts, s, t, batch, clock):
            return {"kd": kl(s.logits, t(batch).logits).mean()}

    with pytest.raises(Missing, match="looks at the teacher again, on other inputs; it is a cache"):
        train(Again(), cached)


def test_a_cache_is_checked_alone_and_in_a_crowd_and_by_its_sums(tmp_path):
    module = made(2)
    cached = stored(tmp_path / "cache", module)
    others = Epochs((X + 1, Y))
    for teacher in (cached, Crowd([made(3), cached])):
        with pytest.raises(UsageError, match="is stale: it differs in its samples"):
            train(KD(), teacher, batches=others)
    with pytest.raises(UsageError, match="is stale"):
        train(KD(), Cached(tmp_path / "cache", made(5)))
    rows = next((tmp_path / "cache").glob("logits*"))
    data = bytearray(rows.read_bytes())
    data[7] ^= 1
    rows.write_bytes(data)
    with pytest.raises(UsageError, match="is damaged in rows 0 to 47"):
        train(KD(), cached)


@pytest.mark.parametrize("gives", ["labels", "probabilities"])
def test_a_black_box_gives_what_it_answers_and_says_what_it_lacks(gives):
    answers = {"labels": Y, "probabilities": torch.eye(3)[Y]}[gives]
    asked = []

    def ask(x):
        asked.append(len(x))
        return [answers[torch.isclose(X, row).all(1)][0].tolist() for row in x]

    class Hard(Objective):
        def terms(self, parts, s, t, batch, clock):
            told = getattr(t, gives)
            assert torch.equal(told, answers[batch.index].to(told.dtype))
            return {"hard": F.cross_entropy(s.logits, told)}

    train(Hard(), BlackBox(ask, gives), steps=2)
    assert asked == [8, 8]
    lacks = {"labels": "logits", "probabilities": "feature"}[gives]

    class More(Objective):
        def terms(self, parts, s, t, batch, clock):
            return {"more": getattr(t, lacks).sum()}

    with pytest.raises(Missing, match=f"asked for '{lacks}'.*a black box that gives {gives} only"):
        train(More(), BlackBox(ask, gives))
    with pytest.raises(UsageError, match="answered 1 times to 8 samples"):
        train(Hard(), BlackBox(lambda x: [0], gives))


def test_probabilities_teach_as_the_logits_behind_them_do():
    """Whatever constant the logits had: the same softened targets, so the same student."""
    module = made(2).eval()
    box = BlackBox(lambda x: module(x)["logits"].softmax(-1), "probabilities")
    a, b = (train(KD(), t, made(1)).student.state_dict() for t in (Frozen(module), box))
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"sum to 3 for a sample .* as after a softmax"):
        train(KD(), BlackBox(lambda x: torch.ones(len(x), 3), "probabilities"))


def test_a_view_serves_all_phases_where_nothing_about_it_can_differ():
    calls = []
    module = made(2)
    module.register_forward_hook(lambda *_: calls.append(1))

    class Twice(KD):
        def update(self):
            return Phase("a", ("student.one",), repeat=2), Phase("b")

    train(Twice(), Frozen(module), steps=2, accumulate=2)
    assert len(calls) == 2 * 2  # once for each micro-batch of a step

    class Noisy(Twice):
        def prepare(self, batch, rng):
            return batch, batch.replace(x=batch.x + rng("noise", batch.index).randn(5))

    del calls[:]
    train(Noisy(), Frozen(module))
    assert len(calls) == 3


def test_a_student_without_a_teacher_needs_none():
    assert train(Labels(), Nobody(), steps=2).log
    look = Look(made(1).eval(), "student")
    assert look.side_of(X[:2]).logits.shape == (2, 3)
