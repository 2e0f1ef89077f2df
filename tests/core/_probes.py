"""The objectives and runs that strain the contract, and a script that plays them in processes.

python _probes.py kill FOLDER            plays each in children that are killed, and resumed
torchrun ... _probes.py two FOLDER       plays each in several processes
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimiser's first step imports it: here once, not in each child
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from limbeck.core import processes
from limbeck.core.crowd import Crowd
from limbeck.core.data import Batches, Beside, Epochs
from limbeck.core.ema import Ema
from limbeck.core.engine import Fitted, fit
from limbeck.core.evaluate import evaluating
from limbeck.core.files import digest_tensors
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Given, Mean, Objective
from limbeck.core.run import Run, loop
from limbeck.core.task import Budget, Optimiser, Task, build_model
from limbeck.core.teachers import Frozen
from limbeck.core.updates import PerTerm, Phase, Routed, Surgery

draw = torch.Generator().manual_seed(7)
X = torch.randn(96, 8, generator=draw)
Y = X[:, :4].argmax(1)
VALID = (torch.randn(40, 8, generator=draw), torch.randint(4, (40,), generator=draw))


class Net(nn.Module):
    """What most probes teach: BatchNorm and dropout are in it."""

    def __init__(self, width: int = 12, drop: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(width, 4)

    def forward(self, x, mask=1.0):
        h = self.norm(self.body(x)).relu() * mask
        return {"embedding": h, "logits": self.head(self.drop(h))}


def budget(accumulate: int, steps: int = 9, batch: int = 16, **more: Any) -> Budget:
    spec = Optimiser("adamw", 0.01, weight_decay=0.01)
    return Budget(steps=steps, batch=batch, optimiser=spec, accumulate=accumulate, **more)


def net(name: str, *args: Any) -> nn.Module:
    return build_model(lambda: Net(*args), 1, name)


def taught(objective: Objective, accumulate: int, teacher: Any = None, **more: Any) -> Fitted:
    """One fit of a Net on (X, Y) with a Net as its teacher."""
    data = more.pop("batches", None) or Epochs((X, Y))
    student = more.pop("student", None) or net("student")
    teacher = teacher or Frozen(net("teacher", 24))
    task = Task(None, student, None, budget=budget(accumulate, **more.pop("budget", {})), **more)
    return fit(objective, student, teacher, data, name="fit", task=task)


# --- 1: a critic with three inner steps (as ammd) ------------------------------------------------


class Critic(Objective):
    def build(self, s, t, batch, facts):
        parts = nn.Module()
        parts.critic = nn.Linear(s.embedding.shape[1], 4)
        return parts

    def update(self):
        up = Optimiser("sgd", 0.1, maximise=True)
        inner = Phase("critic", ("parts.critic",), repeat=3, optimisers={"parts.critic": up})
        return inner, Phase("student", ("student",))

    def terms(self, parts, s, t, batch, clock):
        f = parts.critic(s.embedding.detach()).tanh()
        pi, best = s.logits.softmax(-1), t.logits.softmax(-1)
        noise = -(-clock.rng("act", batch.index).rand(4).clamp_min(1e-9).log()).log()
        act = (s.logits + noise).argmax(-1, keepdim=True)
        if clock.phase == "critic":
            off = ((best - pi.detach()) * f).sum(-1)
            on = ((best * f).sum(-1, keepdim=True) - f.gather(1, act))[:, 0]
            return {"off": off.mean(), "on": on.mean()}
        f = f.detach()
        gain = f.gather(1, act) - (pi.detach() * f).sum(-1, keepdim=True)
        on = -(pi.gather(1, act).log() * gain).mean()
        return {"off": ((best - pi) * f).sum(-1).mean(), "on": on}


def critic(accumulate: int):
    return taught(Critic(), accumulate)


# --- 2: a teacher asked at the student's own output (as tdm) -------------------------------------

TIMES = torch.tensor([0.0, 0.3, 0.6, 0.9])  # alpha_t = cos, sigma_t = sin of t pi / 2


class Denoiser(nn.Module):
    """Gives x0 from a point (B, 2) and its time (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 16), nn.SiLU(), nn.Dropout(0.1), nn.LayerNorm(16), nn.Linear(16, 2)
        )

    def forward(self, x, t):
        return self.layers(torch.cat((x, t[:, None]), 1))


def noised(x0, eps, t):
    angle = t[:, None] * math.pi / 2
    return angle.cos() * x0 + angle.sin() * eps


class Trajectory(Batches):
    """Points on the student's own way from noise to data, without data."""

    def __init__(self) -> None:
        self.base = Epochs(torch.zeros(48, 2))
        self.samples = self.base.samples

    def first(self):
        return self.base.first()

    def __call__(self, student, teacher, clock):
        assert not student.training
        assert not torch.is_grad_enabled()
        batch = self.base(student, teacher, clock)
        x, path = clock.rng("noise", batch.index).randn(2), []
        for now, then in zip(TIMES.flip(0)[:-1], TIMES.flip(0)[1:], strict=True):
            path.append(x)
            at = now.expand(len(x))
            x0 = student(x, at)
            angle = at[:, None] * math.pi / 2
            x = noised(x0, (x - angle.cos() * x0) / angle.sin(), then.expand(len(x)))
        return batch.replace(path=torch.stack(path[::-1], 1))  # (B, K, 2), t_1 first


class Matching(Objective):
    def build(self, s, t, batch, facts):
        parts = nn.Module()
        parts.fake = copy.deepcopy(t.model)
        return parts

    def update(self):
        return Phase("fake", ("parts.fake",)), Phase("student", ("student",))

    def terms(self, parts, s, t, batch, clock):
        k = clock.rng("k", batch.index).randint(3)
        at, below = TIMES[k + 1], TIMES[k]
        x0 = s({"x": batch.path[torch.arange(len(batch)), k], "t": at}).logits
        tau = below + (at - below) * (0.1 + 0.8 * clock.rng("tau", batch.index).rand())
        point = noised(x0, clock.rng("eps", batch.index).randn(2), tau).detach()
        if clock.phase == "fake":
            return {"fake": (parts.fake(point, tau) - x0.detach()).square().mean()}
        real = t({"x": point, "t": tau}).logits
        target = (x0 + real - parts.fake(point, tau)).detach()
        return {"match": ((x0 - target).square() + 1e-6).sqrt().mean()}


def matching(accumulate: int):
    student = build_model(Denoiser, 1, "student")
    teacher = Frozen(build_model(Denoiser, 1, "teacher"))
    return taught(Matching(), accumulate, teacher, student=student, batches=Trajectory())


# --- 3: roles that change within a step (as orc_kd) ----------------------------------------------


class Roles(Objective):
    def build(self, s, t, batch, facts):
        parts = nn.Module()
        parts.pivot = copy.deepcopy(t.model)
        parts.nets = nn.ModuleList([Net(6), Net(10)])
        parts.register_buffer("best", torch.zeros((), dtype=torch.long))
        parts.register_buffer("times", torch.zeros(3))
        return parts

    def update(self):
        group = ("student", "parts.nets")
        return (
            Phase("rank", train=()),
            Phase("intensive", ("parts.pivot",)),
            Phase("private", group),
            Phase("group", group),
        )

    def observe(self, parts, s, t, batch):
        each = [s.logits, *(n(batch.x)["logits"] for n in parts.nets)]
        losses = [F.cross_entropy(z, batch.y, reduction="none") for z in each]
        return {"losses": torch.stack(losses, 1)}

    def after_step(self, parts, seen, clock):
        if clock.phase == "rank":
            parts.best.copy_(seen["losses"].mean(0).argmin())
            parts.times[parts.best] += 1

    def terms(self, parts, s, t, batch, clock):
        nets = [s.model, *parts.nets]
        best, x = int(parts.best), batch.x

        def still(module):
            with evaluating(module):
                return module(x)["logits"]

        if clock.phase == "intensive":
            hard = sum(F.cross_entropy(still(n), batch.y, reduction="none") for n in nets)
            order = hard.argsort(descending=True, stable=True)
            lam = clock.rng("mixup", batch.index).rand()
            z = parts.pivot(lam[:, None] * x + (1 - lam[:, None]) * x[order])["logits"]
            one = F.cross_entropy(z, batch.y, reduction="none")
            two = F.cross_entropy(z, batch.y[order], reduction="none")
            return {"feedback": (lam * one + (1 - lam) * two).mean()}
        if clock.phase == "private":
            z = nets[best](x)["logits"]
            hint = kl(z, still(parts.pivot), 4.0).mean()
            return {"label": F.cross_entropy(z, batch.y) / 2, "private": hint / 2}
        out = {}
        for i, n in enumerate(nets):
            if i != best:
                z = n(x)["logits"]
                hint = kl(z, still(nets[best]), 4.0) + kl(z, still(parts.pivot), 4.0)
                out[f"net{i}"] = F.cross_entropy(z, batch.y) / 2 + hint.mean() / 2
        return out


def roles(accumulate: int):
    return taught(Roles(), accumulate)


# --- 4: a virtual step through the student (as tgeo_kd) ------------------------------------------


class Virtual(Objective):
    def build(self, s, t, batch, facts):
        parts = nn.Module()
        parts.weigh = nn.Sequential(nn.Linear(12, 8), nn.LeakyReLU(), nn.Linear(8, 1), nn.Sigmoid())
        return parts

    def update(self):
        return Phase("outer", ("parts.weigh",)), Phase("inner", ("student",))

    def terms(self, parts, s, t, batch, clock):
        p, q, g = s.logits.detach().softmax(-1), t.logits.softmax(-1), F.one_hot(batch.y, 4)
        state = torch.cat([(q - p) ** 2, (g - p) ** 2, (q - g) ** 2], 1)
        a = parts.weigh(state)[:, 0]
        hard = F.cross_entropy(s.logits, batch.y, reduction="none")
        loss = (a * kl(s.logits, t.logits, 1.5) + (1 - a) * hard).mean()
        if clock.phase == "inner":
            return {"train": loss}
        named = dict(s.model.named_parameters())
        grads = torch.autograd.grad(loss, list(named.values()), create_graph=True)
        virtual = {n: p - 0.1 * g for (n, p), g in zip(named.items(), grads, strict=True)}
        z = functional_call(s.model, virtual, (batch.valid.x,))["logits"]
        return {"valid": F.cross_entropy(z, batch.valid.y)}


def virtual(accumulate: int):
    return taught(Virtual(), accumulate, batches=Beside(Epochs((X, Y)), valid=Epochs(VALID)))


# --- 5: masks, and slicing in mid-run (as cofi) --------------------------------------------------


class Masks(Objective):
    def build(self, s, t, batch, facts):
        parts = nn.Module()
        parts.log_a = nn.Parameter(torch.full((s.embedding.shape[1],), 1.0))
        parts.multipliers = nn.Parameter(torch.zeros(2))
        parts.layer = nn.Linear(s.embedding.shape[1], t.embedding.shape[1])
        return parts

    def update(self):
        own = {
            "parts.log_a": Optimiser("adam", 0.3),
            "parts.multipliers": Optimiser("adam", 0.3, maximise=True),
        }
        return (Phase(optimisers=own),)

    def terms(self, parts, s, t, batch, clock):
        u = torch.rand(len(parts.log_a), generator=clock.rng("mask")).clamp(1e-6, 1 - 1e-6)
        z = ((u.logit() + parts.log_a) * 1.5).sigmoid() * 1.2 - 0.1
        side = s({"x": batch.x, "mask": z.clamp(0, 1)})
        gap = 1 - (parts.log_a + math.log(11) / 1.5).sigmoid().mean() - 0.5 * clock.fraction
        one, two = parts.multipliers
        return {
            "kd": kl(side.logits, t.logits, 2.0).mean(),
            "layer": F.mse_loss(parts.layer(side.embedding), t.embedding),
            "sparsity": one * gap + two * gap**2,
        }

    def after_step(self, parts, seen, clock):
        parts.log_a.clamp_(math.log(0.01), math.log(100))

    def deliver(self, student, parts):
        soft = (parts.log_a * 1.2).sigmoid()
        rows = soft.argsort(stable=True)[len(soft) // 3 :].sort().values
        small = Net(len(rows))
        with torch.no_grad():
            small.body.weight.copy_(student.body.weight[rows])
            small.body.bias.copy_(student.body.bias[rows])
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                old = getattr(student.norm, name)
                getattr(small.norm, name).copy_(old[rows] if old.dim() else old)
            small.head.weight.copy_(student.head.weight[:, rows] * soft[rows])
            small.head.bias.copy_(student.head.bias)
        return small


class Hints(Objective):
    def terms(self, parts, s, t, batch, clock):
        return {
            "label": F.cross_entropy(s.logits, batch.y),
            "kd": kl(s.logits, t.logits, 2.0).mean(),
        }


def masks(accumulate: int):
    pruned = taught(Masks(), accumulate)
    small = Masks().deliver(pruned.student, pruned.parts)
    teacher = Frozen(net("teacher", 24))
    tuned = fit(
        Hints(), small, teacher, Epochs((X, Y)), name="tune", budget=budget(accumulate, steps=6)
    )
    parts = nn.ModuleDict({"masks": pruned.parts, "student": pruned.student})
    return Fitted(tuned.student, parts, [*pruned.log, *tuned.log])


# --- 6: ragged token counts (any language model) -------------------------------------------------


class Texts(torch.utils.data.Dataset):
    """Token sequences of 2 to 9 tokens; labels are the next ones."""

    def __init__(self) -> None:
        rows = [torch.randint(1, 12, (2 + i % 8,), generator=draw) for i in range(64)]
        self.rows = [rows[i] for i in torch.randperm(64, generator=draw)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"ids": self.rows[i], "labels": self.rows[i].roll(-1)}


TEXTS = Texts()


class LM(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.drop = nn.Dropout(0.1)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 12, bias=False)
        self.head.weight = self.embed.weight  # tied

    def forward(self, ids):
        return self.head(self.mix(self.drop(self.embed(ids)))[0])


def padded(rows):
    return pad_sequence(list(rows), batch_first=True)


class Tokens(Objective):
    def counts(self, batch):
        n = sum(len(row) for row in batch.y)
        return {"label": n, "kd": n}

    def terms(self, parts, s, t, batch, clock):
        y = pad_sequence(list(batch.y), batch_first=True, padding_value=-100)
        kept, n = y >= 0, sum(len(row) for row in batch.y)
        label = F.cross_entropy(s.logits[kept], y[kept], reduction="sum")
        return {"label": Mean(label, n), "kd": Mean(kl(s.logits, t.logits)[kept].sum(), n)}


def tokens(accumulate: int):
    student, teacher = build_model(LM, 1, "student"), build_model(lambda: LM(16), 1, "teacher")
    return taught(
        Tokens(),
        accumulate,
        Frozen(teacher),
        student=student,
        batches=Epochs(TEXTS),
        readers={"student": padded, "teacher": padded},
    )


# --- 7: a moving average of student and head, with a centre (as DINO) ----------------------------


class Centred(Objective):
    def prepare(self, batch, rng):
        one = batch.x + 0.1 * rng("one", batch.index).randn(8)
        two = batch.x + 0.1 * rng("two", batch.index).randn(8)
        crops = batch.replace(x=one, other=two)
        return crops, crops

    def build(self, s, t, batch, facts):
        parts = nn.Module()
        parts.head = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 6))
        parts.register_buffer("centre", torch.zeros(6))
        return parts

    def terms(self, parts, s, t, batch, clock):
        seen = [parts.head(side.embedding) / 0.1 for side in (s, s(s.batch.other))]
        told = [t.parts.head(side.embedding) for side in (t(t.batch.other), t)]
        losses = [
            -(((q - parts.centre) / 0.04).softmax(-1) * p.log_softmax(-1)).sum(-1).mean()
            for p, q in zip(seen, told, strict=True)
        ]
        return {"one": losses[0] / 2, "two": losses[1] / 2}

    def observe(self, parts, s, t, batch):
        return {"out": t.parts.head(t.embedding)}

    def after_step(self, parts, seen, clock):
        parts.centre.lerp_(seen["out"].mean(0), 0.1)


def centred(accumulate: int):
    fitted = taught(Centred(), accumulate, Ema((0.9, 1.0), of=("student", "parts.head")))
    parts = nn.ModuleDict({"parts": fitted.parts, "teacher": fitted.teacher.module})
    return Fitted(fitted.student, parts, fitted.log)


# --- 8: five rounds of three clients (as fedcog) -------------------------------------------------


class Pixels(nn.Module):
    """The student is the data: rows of it by number."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.images = nn.Parameter(torch.randn(rows, 8))

    def forward(self, rows):
        return {"images": self.images[rows]}


class Imagine(Objective):
    def asks(self):
        return ("teacher_graph",)

    def terms(self, parts, s, t, batch, clock):
        whole, mine = (m(s.images).logits for m in t.members)
        p, q = whole.softmax(-1), mine.softmax(-1)
        mean = (p + q).log() - math.log(2)
        jsd = ((p * (p.log() - mean)).sum(-1) + (q * (q.log() - mean)).sum(-1)) / 2
        return {"label": F.cross_entropy(whole, batch.y), "differ": 0.1 * (1 - jsd).mean()}


class Local(Objective):
    def terms(self, parts, s, t, batch, clock):
        made = batch.made
        return {
            "label": 0.7 * F.cross_entropy(s.logits, batch.y),
            "kd": 0.3 * kl(s(made).logits, t(made).logits).mean(),
        }


def clients(accumulate: int):
    model = net("global")
    state: dict[str, Any] = {"model": model, "rounds": [], "log": []}
    state |= {f"local{k}": copy.deepcopy(model) for k in range(3)}
    data = [(X[rows], Y[rows]) for rows in (slice(0, 20), slice(20, 56), slice(56, 96))]
    short = budget(accumulate, steps=3, batch=8)
    for i in loop("rounds", state, 5):
        new, log = [], []
        for k in range(3):
            pixels = build_model(lambda: Pixels(12), 1, f"pixels{i}/{k}")
            labels = torch.arange(12) % 4
            numbers = Epochs((torch.arange(12), labels))
            crowd = Crowd([model, state[f"local{k}"]])
            log += fit(Imagine(), pixels, crowd, numbers, name=f"images{k}", budget=short).log
            both = Beside(Epochs(data[k]), made=Epochs((pixels.images.detach(), labels)))
            mine = copy.deepcopy(model)
            log += fit(Local(), mine, Frozen(model), both, name=f"client{k}", budget=short).log
            new.append(mine)
        for k in range(3):
            state[f"local{k}"].load_state_dict(new[k].state_dict())
        merge(model, new, [len(y) for _, y in data])
        state |= {"rounds": [*state["rounds"], i], "log": log}
    assert state["rounds"] == [0, 1, 2, 3, 4]
    parts = nn.ModuleDict({k: v for k, v in state.items() if isinstance(v, nn.Module)})
    return Fitted(model, parts, state["log"])


def merge(model, locals_, sizes):
    states = [m.state_dict() for m in locals_]
    merged = {}
    for name, tensor in states[0].items():
        rows = torch.stack([s[name] for s in states])
        weights = torch.tensor(sizes) / sum(sizes)
        mean = (rows * weights.view(-1, *[1] * tensor.dim())).sum(0)
        merged[name] = mean if tensor.is_floating_point() else rows.amax(0)
    model.load_state_dict(merged)


# --- joins of the terms' gradients, and draws after the step, in two processes -------------------


@dataclass(frozen=True)
class Joined(Objective):
    join: Any = None
    given: bool = False

    def build(self, s, t, batch, facts):
        parts = nn.Module()
        parts.map, parts.far = nn.Linear(12, 24), nn.Linear(12, 4)
        parts.register_buffer("queue", torch.zeros(4, 12))
        return parts

    def update(self):
        return (Phase(join=self.join),) if self.join else (Phase(),)

    def terms(self, parts, s, t, batch, clock):
        out = {
            "label": F.cross_entropy(s.logits, batch.y),
            "kd": kl(s.logits, t.logits, 2.0).mean(),
            "hint": F.mse_loss(parts.map(s.embedding), t.embedding),
            "far": 0.1 * (s.embedding @ parts.queue.T).square().mean(),
        }
        if clock.n == 0:  # a part that only one of the processes has a gradient for
            out["far"] = out["far"] + 0.1 * parts.far(s.embedding).square().mean()
        if self.given:
            row = s.embedding.detach().mean(0)
            out["given"] = Given({"parts.far.weight": row.expand(4, -1), "student.head.bias": Y4})
        return out

    def observe(self, parts, s, t, batch):
        return {"rows": s.embedding, "first": s.logits.argmax(1) == 0}

    def after_step(self, parts, seen, clock):
        kept = torch.randperm(len(seen["rows"]), generator=clock.rng("queue"))[:4]
        parts.queue.copy_(seen["rows"][kept] * (1 + seen["first"][kept, None].float()))


Y4 = torch.tensor([0.1, -0.2, 0.3, 0.0])
SGD = {"optimiser": Optimiser("sgd", 0.05, weight_decay=0.01), "clip": 1.0}


def joined(join: Any, given: bool = False, **more: Any) -> Callable[[int], Fitted]:
    def run(accumulate: int) -> Fitted:
        student = net("student")
        plan = dict(steps=7, batch=16, accumulate=accumulate, **more)
        teacher = Frozen(net("teacher", 24))
        return fit(
            Joined(join, given), student, teacher, Epochs((X, Y)), name="fit", budget=Budget(**plan)
        )

    return run


PROBES: dict[str, Callable[[int], Fitted]] = {
    f.__name__: f for f in (critic, matching, roles, virtual, masks, tokens, centred, clients)
}
JOINS: dict[str, Callable[[int], Fitted]] = {
    "total": joined(None),
    "given": joined(None, True),
    "surgery": joined(Surgery(), True),
    "routed": joined(Routed({"hint": ("parts",), "far": ("student.body", "parts")})),
    "per_term": joined(PerTerm({"label": 0.5, "": 0.9}, alone=0.7), **SGD),
}


# --- playing them --------------------------------------------------------------------------------


class Stopped(Exception):
    """Raised where a run is stopped in-process."""


def play(
    name: str,
    folder: Path | None = None,
    accumulate: int = 1,
    stop: int | None = None,
    kill: bool = False,
) -> dict[str, str]:
    """Run a probe, or go on with it; stop it after so many steps of this process.

    Returns:
        Digests of student, parts (with their buffers) and log.
    """
    done = 0

    def after_step(stage: str, step: int) -> None:
        nonlocal done
        done += 1
        if done == stop:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stopped

    probe = {**PROBES, **JOINS}[name]
    with Run(None, 3, folder, "cpu", checkpoint=4, after_step=after_step):
        fitted = probe(accumulate)
    return {
        "student": digest_tensors(fitted.student.state_dict()),
        "parts": digest_tensors(fitted.parts.state_dict()),
        "log": json.dumps(fitted.log),
    }


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; -9 when it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(name: str, folder: Path, stops: tuple[int, ...]) -> dict[str, Any]:
    """A probe in children: killed after so many steps each, then let end."""

    def end() -> None:
        (folder / "told.json").write_text(json.dumps(play(name, folder)))

    codes = [in_child(lambda n=n: play(name, folder, stop=n, kill=True)) for n in stops]
    codes.append(in_child(end))
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "codes": codes,
        "told": json.loads((folder / "told.json").read_text()),
        "rows": [[row["stage"], row["step"]] for row in rows],
    }


STOPS = {"clients": (4, 25, 17)}  # steps of each process; others have 9 or 15 in all


def main(what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    out: dict[str, Any] = {}
    if what == "kill":
        for name in PROBES:
            out[name] = killed(name, folder / name, STOPS.get(name, (2, 5, 2)))
    else:
        Run(device="cpu").devices  # noqa: B018 - which joins the processes
        for name in (*PROBES, *JOINS):
            out[name] = play(name)
        for name in ("centred", "roles", "per_term"):  # and stopped, and resumed
            for stop in (5, None):
                try:
                    out[f"{name} resumed"] = play(name, folder / f"two-{name}", stop=stop)
                except Stopped:
                    torch.distributed.barrier()
        everyone: list[Any] = [None] * processes.world()
        torch.distributed.all_gather_object(everyone, out)
        out = {"processes": len(everyone), "everyone": everyone}
        if processes.rank():
            return
    (folder / f"{what}.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
