"""L2D - several labels at once: each label's own probability, and how label embeddings lie."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Table, reader_of
from limbeck.core.engine import fit
from limbeck.core.evaluate import evaluating, predict
from limbeck.core.losses.divergences import check_classes
from limbeck.core.method import Clock, Method, Objective, Result, number
from limbeck.core.run import current, rng
from limbeck.core.task import Task, build_model
from limbeck.core.teachers import Frozen, Nobody
from limbeck.core.views import Side
from limbeck.errors import Missing, UsageError
from limbeck.vision.l2d.decoder import Decoder, Headed, channels_of, one_hot
from limbeck.vision.l2d.scores import f1_scores, mean_average_precision

CARD = Card(
    key="l2d",
    title="Multi-Label Knowledge Distillation",
    year=2023,
    arxiv="2308.06453",
    code="https://github.com/penghui-yang/L2D",
    kinds=("response", "relation", "feature", "stagewise"),
    needs=("logits|student:logits", "embedding|student:embedding", "y"),
    gives="model",
    world="multilabel",
    stages=("head", "student"),
    tiny={"dim": 16, "inner": 16, "attend": 2},
    departs="The code's loss is divided by the batch: binary cross-entropies, and relations within "
    "an image, are means over images, relations of a label's images their sum over labels divided "
    "by the number of images. At its batch of 64 the weights are those of the code, of which mld "
    "is 10 / 64. Divergences are computed from logits, without its clamp at 1e-8, and distances "
    "from differences, not from products. Labels that share a query share its embedding, where the "
    "code stops. A given teacher's backbone gets a head and is trained on with it, on the task's "
    "budget; the paper trains its own, for 30 of 80 epochs of a schedule. F1 is at 0.5, where the "
    "code takes as many labels as are true. Class numbers count as one label each, where no image "
    "has two and the term id is zero. Augmentations are the data's. Queries are fixed random ones, "
    "as in the paper; ML-Decoder's option of word embeddings, which it does not use, is left out.",
)
EXEMPT = {
    "accumulate": "the term cd relates the images of a label within a micro-batch",
    "doubled": "the term cd divides distances by their mean over pairs, and an image and its "
    "double are a pair of distance 0",
}


def mld_loss(s: Tensor, t: Tensor) -> Tensor:
    """sum_c KL(p_t || p_s) of each label's two outcomes, p = sigmoid(z); the mean over images.

    Its gradient in s is (p_s - p_t) / B: labels do not meet. Shapes: s, t (B, C) logits -> ().
    """
    check_classes(s, t)
    s, t, p = s.float(), t.float(), t.float().sigmoid()
    yes = p * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (yes + no).sum(1).mean()


def relations(e: Tensor, there: Tensor) -> Tensor:
    """Distances within sets of vectors, divided by their mean over pairs; 0 where one is not there.

    Shapes: e (G, n, D) of G sets, there (G, n) of 0 and 1 -> (G, n, n).
    """
    with torch.autocast(e.device.type, enabled=False):
        apart = torch.cdist(e.float(), e.float(), compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.clamp_min(1e-6)  # equal vectors are all equally near
    pairs = there[:, :, None] * there[:, None]
    pairs = pairs * (1 - torch.eye(pairs.shape[1], device=e.device))
    mean = (apart * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)
    return apart * pairs / (mean + (mean == 0))[:, None, None]


def relation_loss(s: Tensor, t: Tensor, there: Tensor) -> Tensor:
    """Sum over sets of two vectors or more of 1 / n sum_ij smooth_l1(phi_s - phi_t).

    phi are the `relations`; of two vectors they are always 1, so that such sets give nothing.
    Shapes: s (G, n, D), t (G, n, D'), there (G, n) of 0 and 1 -> ().
    """
    # Sets hold few of the n as a rule: only as many are related as the largest has.
    own = there.argsort(dim=1, descending=True, stable=True)[:, : max(1, int(there.sum(1).max()))]
    s, t = (x.gather(1, own[..., None].expand(-1, -1, x.shape[2])) for x in (s, t))
    there = there.gather(1, own)
    gap = F.smooth_l1_loss(relations(s, there), relations(t, there).detach(), reduction="none")
    return (gap.sum((1, 2)) / there.sum(1).clamp_min(1)).sum()


@dataclass(frozen=True)
class Labelled(Objective):
    """label * BCE, summed over labels; and mld, cd and id where they have weight."""

    label: float = 1.0
    mld: float = 0.0
    cd: float = 0.0
    id: float = 0.0

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        out, y = {}, torch.empty(0)
        if self.label or self.cd or self.id:
            y = one_hot(batch.y, s.logits.shape[1])
        if self.label:
            each = F.binary_cross_entropy_with_logits(s.logits.float(), y, reduction="none")
            out["label"] = self.label * each.sum(1).mean()
        if self.mld:
            out["mld"] = self.mld * mld_loss(s.logits, t.logits)
        if (self.cd or self.id) and not s.embedding.dim() == t.embedding.dim() == 3:
            raise UsageError(
                f"l2d's 'embedding' is {tuple(s.embedding.shape)} and {tuple(t.embedding.shape)}; "
                "both sides must give one for each label, (B, C, D), or leave it heads='made'"
            )
        for name, axes in (("cd", (1, 0)), ("id", (0, 1))):
            weight = getattr(self, name)
            if weight:
                one, two = (x.embedding.permute(*axes, 2) for x in (s, t))
                there = y.permute(*axes)
                out[name] = weight * relation_loss(one, two, there) / len(y)
        return out


@dataclass(frozen=True)
class L2D(Method):
    """A student that names several labels is taught each label's probability, and its embedding.

    label * BCE(y, s) + mld * `mld_loss` + cd * sum over labels of the `relation_loss` of the
    images that have it / B + id * mean over images of that of the labels it has. Embeddings are
    of each label in each image (B, C, D); only those of labels that are there are related.

    heads="made" puts an ML-Decoder on the tap `feature` of both sides: `dim` the embeddings'
    width, `inner` that of the feed-forward layer, `attend` heads of attention. The teacher's is
    first trained on labels, with a copy of the teacher below it; what ships is the student with its
    own. heads="given": both sides show `embedding` (B, C, D) and `logits` of their own.
    y is (B, C) of 0 and 1, or class numbers (B,). The report has mAP, OF1 and CF1 of the judged
    set.

    Trained: the student and its head, after a copy of the teacher with its head, each with the
    task's budget. Frozen: the teacher, then that copy.
    Raises: UsageError for a teacher that is no module, Missing without a tap `feature` by name.
    Source: Penghui Yang et al., ICCV 2023, arXiv 2308.06453, section 3; ML-Decoder, weights and
    reductions from the authors' code.
    Relatives: `kd` has one label an image; `rkd` relates whole images.

    Example:
        >>> import torch
        >>> z = torch.randn(2, 5)
        >>> float(mld_loss(z, z)), float(mld_loss(z + 3, z)) > 0
        (0.0, True)
    """

    label: float = number(1.0, least=0)
    mld: float = number(0.15625, least=0)
    cd: float = number(100.0, least=0)
    id: float = number(1000.0, least=0)
    heads: Literal["made", "given"] = "made"
    dim: int = number(768, least=1)
    inner: int = number(2048, least=1)
    attend: int = number(8, least=1)
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.attend:
            raise UsageError(
                f"L2D.dim is {self.dim}; it must be a multiple of attend={self.attend}"
            )

    def run(self, task: Task) -> Result:
        """The teacher's head, the student, and its scores."""
        taught = Labelled(self.label, self.mld, self.cd, self.id)
        student, teacher = current().student(task), task.the_teacher()
        log, bare = [], task
        if self.heads == "made":
            bare = replace(task, taps={})
            above = self._teacher(task)
            student = self._headed(task, student, "student")
            if any((self.mld, self.cd, self.id)):
                own = reader_of(task.readers, "teacher")
                alone = replace(
                    bare, readers={"student": own} if own else {}, budget=task.budget.unwatched()
                )
                first = fit(Labelled(), above, Nobody(), task.batches(), name="head", task=alone)
                teacher, log = Frozen(first.student), first.log
        done = fit(taught, student, teacher, task.batches(), name="student", task=bare)
        model = done.student
        if isinstance(model, Headed):
            model.whole = False
        return Result(model=model, log=log + done.log, report=_scores(task, model))

    def _teacher(self, task: Task) -> Headed:
        """A copy of the teacher under a fresh head."""
        teacher = task.the_teacher()
        if not isinstance(teacher, Frozen):
            raise UsageError(
                "l2d puts a head on the teacher, which must be a module for that; give one, or "
                "heads='given' where both sides show embeddings of labels"
            )
        module = copy.deepcopy(teacher.module).requires_grad_(True)
        return self._headed(task, module, "teacher")

    def _headed(self, task: Task, module: nn.Module, side: Literal["teacher", "student"]) -> Headed:
        path = task.taps.get("feature", (None, None))[side == "student"]
        if not isinstance(path, str):
            raise Missing(
                f"l2d puts a head on the {side}'s feature map, but no tap 'feature' names it; give "
                'taps={"feature": ("teacher path", "student path")}'
            )
        batch, device = task.batches().first(), current().device
        labels = batch.y.shape[1] if batch.y.dim() == 2 else task.count_classes()
        if labels is None:
            raise UsageError("l2d cannot tell how many labels there are; give the task's classes")
        reader = reader_of(task.readers, side)
        x = batch.to(device).columns["x"]
        here = channels_of(module.to(device), path, x if reader is None else reader(x))
        sizes = (here, labels, self.dim, self.inner, self.attend, rng(f"head/{side}"))
        head = build_model(partial(Decoder, *sizes), current().seed, f"head/{side}")
        return Headed(module, path, head).to(device)


def _scores(task: Task, model: nn.Module) -> dict[str, float]:
    """mAP, OF1 and CF1 on the judged set, where there is one."""
    if task.set_or_none(task.judged) is None:
        return {}
    table, device = Table(task.set(task.judged), task.judged), current().device
    with evaluating(model.to(device)):
        z, y = predict(model, table, reader_of(task.readers, "student"), device)
    y = one_hot(y, z.shape[1])
    return {"mAP": mean_average_precision(z, y), **f1_scores(z, y)}
