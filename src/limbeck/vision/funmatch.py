"""FunMatch - teacher and student see one view, aggressively cropped and mixed, for a long time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Table, reader_of
from limbeck.core.engine import fit
from limbeck.core.evaluate import evaluating
from limbeck.core.looking import look_over
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, Result, Rng, number
from limbeck.core.run import current, stage
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen, Nobody
from limbeck.core.views import Side, call_model, entries_of
from limbeck.errors import UsageError

CARD = Card(
    key="funmatch",
    title="Knowledge distillation: A good teacher is patient and consistent",
    year=2022,
    arxiv="2106.05237",
    code="https://github.com/google-research/big_vision",
    kinds=("response", "augmentation", "consistency", "schedule", "label_free"),
    needs=("logits", "index"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="Crops are cut from the pictures as the data gives them and resized to their size; "
    "their sides are not rounded to whole pixels. A fixed teacher sees the picture whole, which "
    "is a centre crop where the data is cropped so; over views it is averaged as probabilities at "
    "temperature 1, which the paper leaves open. A picture is mixed with its neighbour in the "
    "micro-batch. The code gives the larger share to the picture itself, which without labels "
    "only turns pairs round.",
)
RATIOS = (3 / 4, 4 / 3)  # width to height of an inception crop
MILD = 0.8  # of each side: 128 of 160 pixels


def boxes(u: Tensor, height: int, width: int, area: float = 0.05) -> Tensor:
    """Inception crops (top, left, height, width) in pixels, from uniform draws u.

    r = w / h is uniform in [3/4, 4/3), h from sqrt(area H W / r) to min(H, W / r), the place
    wherever the crop fits; a range that is empty is its upper end.
    Shapes: u (B, 4) -> (B, 4). H and W are the picture's `height` and `width`.
    """
    r = RATIOS[0] + u[:, 0] * (RATIOS[1] - RATIOS[0])
    most = (width / r).clamp(max=height)
    least = (area * height * width / r).sqrt().minimum(most)
    h = least + u[:, 1] * (most - least)
    w = h * r
    return torch.stack((u[:, 2] * (height - h), u[:, 3] * (width - w), h, w), 1)


def cropped(x: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """The boxes of pictures, resized to the pictures' size (bilinear), some mirrored.

    Output pixel i of H reads at top + clamp((i + 1/2) h / H - 1/2, 0, h - 1), as if the box were
    cut out first.
    Shapes: x (B, C, H, W), box (B, 4) as of `boxes`, flip (B,) bool -> (B, C, H, W).
    """
    reads = []
    for axis, size in enumerate(x.shape[2:]):
        start, length = box[:, axis, None], box[:, axis + 2, None]
        at = (torch.arange(size, device=x.device) + 0.5) * length / size - 0.5
        at = start + at.clamp(min=0).minimum((length - 1).clamp(min=0))
        reads.append((2 * at + 1) / size - 1)
    down, along = reads
    along = torch.where(flip[:, None], along.flip(1), along)
    both = [
        along[:, None, :].expand(-1, x.shape[2], -1),
        down[:, :, None].expand(-1, -1, x.shape[3]),
    ]
    grid = torch.stack(both, -1)
    return F.grid_sample(x, grid.to(x.dtype), padding_mode="border", align_corners=False)


def mixed(x: Tensor, share: Tensor | float) -> Tensor:
    """Each picture with the one before it: share * x_i + (1 - share) * x_(i - 1).

    Shapes: x (B, ...) -> (B, ...); the first goes with the last.
    """
    return share * x + (1 - share) * x.roll(1, 0)


def agreement(s: Tensor, t: Tensor, k: int = 1) -> Tensor:
    """Whether t's first class is among the first k of s, for each sample: (B, C) twice -> (B,)."""
    first = s.topk(min(k, s.shape[1]), 1).indices
    return (first == t.argmax(1, keepdim=True)).any(1)


@dataclass(frozen=True)
class FunMatch(Objective):
    """A student is to be the same function as its teacher, on many points between the pictures.

    funmatch * tau^2 KL(softmax(t / tau) || softmax(s / tau)); no labels are read. `teaching` says
    what the sides see:
    "function", one view for both, each picture mixed with another, x = l x_i + (1 - l) x_j, l
    uniform in [0, 1) and one for a step;
    "consistent", the same without mixing;
    "independent", a view each;
    "fixed", the student a view and the teacher the picture as it is, so that a cache serves; or,
    `averaged`, its mean probabilities over so many views, taken once (in the paper 1000).
    A view is a `crop` (inception: of at least the share `area` of the picture; mild: 0.8 of each
    side; or none), mirrored at random with `flip`. Views are made before the sides' readers, which
    may bring each side to its own size.

    The report says for train, valid and test, on whole pictures, how near the sides are: `kl` at
    tau 1, and `agree`, `agree5`: how often the teacher's first class is the student's, or among
    its first five. It is there where the teacher is a module.

    Trained: the student. Frozen: the teacher, in eval mode. Patience is the budget's: the paper
    trains for 300 to 9600 epochs of ImageNet and up to a million of small sets, by Adam with
    decoupled weight decay (which matters), cosine after a warm-up, gradients clipped at norm 1.
    With few epochs a fixed teacher can look better.
    Raises: UsageError where inputs are no pictures (B, C, H, W), or no fixed teacher is averaged.
    Source: Beyer et al., CVPR 2022, arXiv 2106.05237, section 3; tau 1 is that of ImageNet (1 to
    10 elsewhere), the crop's 5 percent and its ratios are the code's.
    Relatives: `kd` is "consistent" without crops and flips, beside labels.

    Example:
        >>> import torch
        >>> mixed(torch.tensor([[0.0], [1.0], [5.0]]), 0.75).flatten().tolist()
        [1.25, 0.75, 4.0]
    """

    funmatch: float = number(1.0, least=0)
    tau: float = number(1.0, above=0)
    teaching: Literal["function", "consistent", "independent", "fixed"] = "function"
    crop: Literal["inception", "mild", "none"] = "inception"
    area: float = number(0.05, above=0, most=1)
    flip: bool = True
    averaged: int = number(0, least=0)  # views of a fixed teacher; 0: the picture itself
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.averaged and self.teaching != "fixed":
            raise UsageError(
                f"FunMatch.averaged is {self.averaged}, but with teaching='{self.teaching}' the "
                "teacher sees a view at every step; give teaching='fixed'"
            )

    def asks(self) -> tuple[str, ...]:
        return (*CARD.needs, "teacher:again") if self.averaged else CARD.needs

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """A view for both sides, or one for each."""
        seen = self.view(batch, rng, "view")
        if self.teaching == "fixed":
            return seen, batch
        if self.teaching == "independent":
            return seen, self.view(batch, rng, "the teacher's view")
        if self.teaching == "function":  # sample number 0: the same in all micro-batches
            share = rng("mixup", batch.index.new_zeros(1)).rand().to(seen.x.dtype)
            seen = seen.replace(x=mixed(seen.x, share))
        return seen, seen

    def view(self, batch: Batch, rng: Rng, name: str) -> Batch:
        """The batch with its pictures cropped and mirrored by draws of that name."""
        x = batch.x
        if not isinstance(x, Tensor) or x.dim() != 4:
            told = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(
                f"funmatch crops pictures (B, C, H, W), but was given inputs {told}; give tensors "
                "of one size"
            )
        # bytes become numbers in [0, 1], as a reader of pictures takes them
        x = x if x.is_floating_point() else x.float() / 255
        if self.crop == "none" and not self.flip:
            return batch if x is batch.x else batch.replace(x=x)
        u = rng(name, batch.index).rand(5)
        if self.crop == "inception":
            box = boxes(u[:, :4], x.shape[2], x.shape[3], self.area)
        else:
            whole = u.new_tensor(x.shape[2:]).expand(len(u), 2)
            size = whole * (MILD if self.crop == "mild" else 1)
            box = torch.cat((u[:, 2:4] * (whole - size), size), 1)
        flip = (u[:, 4] < 0.5) & self.flip
        return batch.replace(x=cropped(x, box, flip))

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `funmatch`."""
        return {"funmatch": self.funmatch * kl(s.logits, t.logits, self.tau).mean()}

    def run(self, task: Task) -> Result:
        """One fit, and how near the sides are after it."""
        teacher, student = task.the_teacher(), current().student(task)
        if self.averaged:
            given = Averaged(self, stage("fit/targets", lambda: self.targets(task)))
            fitted = fit(given, student, Nobody(), task.batches(), name="fit")
        else:
            fitted = fit(self, student, teacher, task.batches(), name="fit")
        report = None
        if isinstance(teacher, Frozen):
            sets = [n for n in ("train", "valid", "test") if task.set_or_none(n) is not None]
            report = {n: nearness(task, fitted.student, teacher.module, n) for n in sets}
        return Result(model=fitted.student, report=report, log=fitted.log)

    def targets(self, task: Task) -> Tensor:
        """The logarithm of the teacher's mean probabilities over views of all samples (N, C)."""
        n, found = self.averaged, []
        with torch.no_grad():
            for batch, t in look_over(task):
                draws = (Clock(current().seed, "fit/targets", k, n, n).rng for k in range(n))
                views = (t(self.view(batch, rng, "the teacher's view")) for rng in draws)
                total = sum(v.logits.float().softmax(1) for v in views)
                found.append((total / n).clamp_min(1e-30).log().cpu())
        return torch.cat(found)


@dataclass(frozen=True, eq=False)
class Averaged(Objective):
    """A fixed teacher's targets (N, C), as logits, for the student's views."""

    m: FunMatch
    targets: Tensor

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        return self.m.prepare(batch, rng)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        target = self.targets[batch.index.cpu()].to(s.logits.device)
        return {"funmatch": self.m.funmatch * kl(s.logits, target, self.m.tau).mean()}


def nearness(task: Task, student: nn.Module, teacher: nn.Module, name: str) -> dict[str, float]:
    """`kl`, `agree` and `agree5` of student and teacher on the set `name` of a task."""
    table, device = Table(task.set(name), name), current().device
    rows = []
    with evaluating(student), evaluating(teacher):
        for batch in table.chunks(512):
            x, logits = batch.to(device).columns["x"], []
            for side, model in (("student", student), ("teacher", teacher)):
                reader = reader_of(task.readers, side)
                out = entries_of(call_model(model, reader(x) if reader else x))
                logits.append(out["logits"].float())
            s, t = logits
            rows.append(torch.stack((kl(s, t), agreement(s, t), agreement(s, t, 5)), 1).cpu())
    kls, ones, fives = torch.cat(rows).double().mean(0).tolist()
    return {"kl": kls, "agree": ones, "agree5": fives}
