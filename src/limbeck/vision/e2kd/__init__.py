"""e2KD - a student gives the teacher's answers for the teacher's reasons: explanations match."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Table
from limbeck.core.losses.divergences import check_classes, kl
from limbeck.core.method import Clock, Facts, Objective, Rng, number
from limbeck.core.run import current
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.keeping import Drawn
from limbeck.vision.e2kd.maps import boxes, cut, explanation_loss, grad_cam, input_gradient, wide

CARD = Card(
    key="e2kd",
    title="Good Teachers Explain: Explanation-Enhanced Knowledge Distillation",
    year=2024,
    arxiv="2402.03119",
    code="https://github.com/m-parchami/GoodTeachersExplain",
    kinds=("response", "gradient", "attention", "label_free"),
    needs=("logits", "feature", "again", "teacher_graph", "index", "weights", "teacher_weights"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="Maps of different size are compared at the size of the raw pictures, before a side's "
    "own reader, and input gradients are taken there too; bytes become numbers in [0, 1] for it. "
    "Frozen maps are kept as small as the teacher gives them and enlarged at each step, and they "
    "are made anew where a run is resumed. A crop is clipped to the picture where the code draws "
    "another one, and its sides are not rounded to whole pixels. A B-cos network is the user's; "
    "it is explained in the authors' explanation_mode() if it has one. The released code has "
    "no loss for several labels: here it is the divergence of each label's two outcomes, summed. "
    "How explanations lie to object boxes, and the test set Waterbirds, are other data's.",
)


def _leaf(x: Any) -> Tensor:
    """Pictures (B, C, H, W) that a gradient may end in; bytes as the readers of pictures do."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        told = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"e2kd explains pictures (B, C, H, W), but was given inputs {told}")
    x = x if x.is_floating_point() else x.float() / 255
    leaf: Tensor = x.detach().clone().requires_grad_()
    return leaf


def _explaining(model: nn.Module) -> AbstractContextManager[Any]:
    """What a B-cos network is explained in, where its dynamic weights count as constants."""
    mode = getattr(model, "explanation_mode", None)
    return nullcontext() if mode is None else mode()


def binary_kl(s: Tensor, t: Tensor, tau: float = 1.0) -> Tensor:
    """tau^2 sum_c KL(p_t || p_s) of each label's two outcomes, p = sigmoid(z / tau), per sample.

    Shapes: s, t (B, C) logits -> (B,).
    """
    check_classes(s, t)
    s, t = wide(s) / tau, wide(t) / tau
    p = t.sigmoid()
    yes = p * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return tau**2 * (yes + no).sum(1)


def binary_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """The sum over labels of their binary cross-entropies, the mean over samples.

    Shapes: z (B, C) logits, y (B, C) of 0 and 1 -> ().
    """
    if y.shape != z.shape:
        raise UsageError(
            f"e2kd's y is {tuple(y.shape)} and its logits are {tuple(z.shape)}; with "
            "labels='several' give 0 or 1 for each label of each sample, (B, C)"
        )
    each = F.binary_cross_entropy_with_logits(z, y.to(z), reduction="none")
    return each.sum(1).mean()


class Kept(nn.Module):
    """The teacher's logits (N, C) and maps (N, ...) of the training set, by sample number."""

    logits: Tensor
    maps: Tensor

    def __init__(self, logits: Tensor, maps: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits, persistent=False)
        self.register_buffer("maps", maps, persistent=False)


@dataclass(frozen=True)
class E2KD(Objective):
    """A student is taught the teacher's probabilities, and why the teacher gives its first one.

    kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)) + explain * (1 - cos(E_s, E_t))
    + label * CE(y, s). E are both sides' explanations of the class that the teacher ranks first:
    `kind` "gradcam", Grad-CAM on the tap `feature`; or "input", the gradient in the pixels.
    `labels` "several", of pictures that have any number: the divergence is summed over labels, of
    each label's two outcomes with p = sigmoid(z / tau), and label is the sum of their binary
    cross-entropies, y (B, C) of 0 and 1.
    `every` so many steps maps are compared, else the term is 0.

    `frozen`: the teacher is asked once, about the pictures as they are; its maps then get the same
    crop and mirroring as the picture, its logits stay. Live, it sees what the student sees.
    crop < 1 cuts out parts of that area or more, `flip` mirrors half of the pictures; in "frozen"
    leave the data's own augmentation out.

    Trained: the student, through second derivatives of its layers. Frozen: the teacher, whose
    graph is only used to look into it. Stopped: E_t.
    Raises: UsageError for inputs that are no pictures, a feature that is no map or that no gradient
    reaches, and for frozen maps of pictures that the data itself augments.
    Source: Parchami-Araghi et al., ECCV 2024, arXiv 2402.03119, section 3; the paper sweeps
    tau in 1, 5 and explain in 0.2, 1, 5, 10, with label at 0; every = 4 or 16 where time counts.
    Relatives: `kd` is explain = 0; `fitnets` matches what is seen instead of why it is said.

    Example:
        >>> import torch
        >>> a = torch.rand(2, 3, 4, 4)
        >>> round(float(explanation_loss(5 * a, a)), 4)
        0.0
    """

    label: float = number(0.0, least=0)
    kd: float = number(1.0, least=0)
    explain: float = number(1.0, least=0)
    tau: float = number(1.0, above=0)
    kind: Literal["gradcam", "input"] = "gradcam"
    every: int = number(1, least=1)
    frozen: bool = False
    crop: float = number(1.0, above=0, most=1)
    flip: bool = False
    labels: Literal["one", "several"] = "one"  # of a picture
    card = CARD

    def asks(self) -> tuple[str, ...]:
        """Of the card's needs, the teacher's graph only where it explains."""
        return CARD.needs if self.explain else ("logits",)

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """The same crop for both sides; for `input` pixels that the student's gradient ends in."""
        seen = batch
        if self.crop < 1 or self.flip:
            box = boxes(rng("box", batch.index).rand(5), self.crop, self.flip)
            seen = batch.replace(x=cut(_leaf(batch.x).detach(), box), box=box)
        if self.explain and self.kind == "input":
            return seen.replace(x=_leaf(seen.x)), seen
        return seen, seen

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """For `frozen` what the teacher says of all samples, as they are."""
        task = current().task
        if not (self.frozen and self.explain):
            return nn.Module()
        if task is None or isinstance(task.train, Drawn):
            raise UsageError(
                "e2kd keeps maps of pictures as they are (frozen), and these are augmented before "
                "it sees them; leave augment out (--augment none), and give crop and flip here"
            )
        device, found = batch.x.device, []
        with torch.enable_grad():
            for some in Table(task.set("train")).chunks(64):
                found.append(self._taught(t, some.to(device)))
        return Kept(*(torch.cat(each) for each in zip(*found, strict=True)))

    def _explained(self, side: Side, z: Tensor, c: Tensor, graph: bool) -> Tensor:
        """A side's map of classes c (B,)."""
        z = z.gather(1, c[:, None])[:, 0]
        if self.kind == "input":
            return input_gradient(side.batch.x, z, graph)
        if not isinstance(side.feature, Tensor) or side.feature.dim() != 4:
            raise UsageError(
                f"e2kd's 'feature' is of shape {tuple(side.feature.shape)}, which is no map "
                "(B, K, h, w); tap the last layer that gives one, or give kind='input'"
            )
        return grad_cam(side.feature, z, graph)

    def _logits(self, side: Side) -> Tensor:
        """A side's logits; for `input` all is computed in the mode that it is explained in."""
        apart = self.explain and self.kind == "input"
        with _explaining(side.model) if apart else nullcontext():
            logits: Tensor = side.logits
        return logits

    def _taught(self, t: Side, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's logits, and its map of the first class."""
        looked = t(batch.replace(x=_leaf(batch.x)))
        z = self._logits(looked)
        return z.detach(), self._explained(looked, z, z.argmax(1), False).detach()

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `kd` and `explain`."""
        out, z = {}, self._logits(s)
        due = bool(self.explain) and clock.step % self.every == 0
        e_t = None
        if self.frozen and self.explain:
            z_t, e_t = parts.logits[batch.index], parts.maps[batch.index]
        elif due:
            z_t, e_t = self._taught(t, t.batch)
        elif self.kd:
            z_t = t.logits.detach()
        if self.label:
            hard = F.cross_entropy if self.labels == "one" else binary_cross_entropy
            out["label"] = self.label * hard(z.float(), batch.y)
        if self.kd:
            soft = kl if self.labels == "one" else binary_kl
            out["kd"] = self.kd * soft(z, z_t, self.tau).mean()
        if self.explain:
            out["explain"] = z.new_zeros((), dtype=torch.float32)
        if due and e_t is not None:
            e_s, size = self._explained(s, z, z_t.argmax(1), True), s.batch.x.shape[2:]
            e_s, e_t = (F.interpolate(e, size, mode="bilinear") for e in (e_s, e_t))
            if self.frozen and "box" in s.batch:
                e_t = cut(e_t, s.batch.box)
            out["explain"] = self.explain * explanation_loss(e_s, e_t)
        return out
