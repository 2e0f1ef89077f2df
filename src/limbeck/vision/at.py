"""AT - a student attends to the places that its teacher attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, Rng, number
from limbeck.core.objectives import ramp
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.maps import alike, unit, wide
from limbeck.vision._kit.stages import paired

CARD = Card(
    key="at",
    title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural "
    "Networks via Attention Transfer",
    year=2017,
    arxiv="1612.03928",
    code="https://github.com/szagoruyko/attention-transfer",
    kinds=("feature", "attention", "gradient"),
    needs=("blocks", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The paper's equation has half the norm of the difference with a weight of about 0.1 "
    "(form='norm'); the default is the authors' code: the mean of squares over places, with 1000. "
    "For input gradients it prints a norm but the derivative of its square, which is the default "
    "here; no code of them was published, and their weights are not known. It lowers the weight "
    "beside KD without saying how; fade does so linearly. A map of zeros stays zero, where the "
    "code divides by 1e-12 at least. Stages of unlike numbers are paired by their share of the "
    "depth, and grids of unlike size averaged down, where the code has equal ones. Input gradients "
    "are taken in the raw inputs, before a side's own reader.",
)
DOES = "at compares where stages are active"
Form = Literal["square", "norm"]


def attention(a: Tensor, p: float = 2.0, pool: Literal["sum", "max"] = "sum") -> Tensor:
    """Q / |Q|, how active each place is: Q = sum_c |a_c|^p, or max_c by `pool`; zero where Q is.

    Shapes: a (B, C, H, W) -> (B, H * W).
    """
    a = a.flatten(2).abs()
    a = a if p == 1 else a.pow(p)
    return unit(a.sum(1) if pool == "sum" else a.amax(1))


def apart(s: Tensor, t: Tensor, form: Form = "square") -> Tensor:
    """|s - t|^2 / D, the mean of squares; or with form "norm" |s - t| / 2. The mean over samples.

    Shapes: s, t (B, D) -> ().
    """
    d = s - t
    return d.square().mean() if form == "square" else d.norm(dim=1).mean() / 2


def slope(side: Side, y: Tensor, graph: bool) -> Tensor:
    """The gradient of each sample's cross-entropy in the raw inputs of this side.

    With `graph` it can be differentiated. Shapes: y (B,) -> (B, ...).
    """
    loss = F.cross_entropy(wide(side.logits), y, reduction="sum")
    (found,) = torch.autograd.grad(loss, side.batch.x, create_graph=graph)
    return wide(found)


def leaf(batch: Batch, flip: bool = False) -> Batch:
    """The batch with inputs that a gradient may end in; with `flip` mirrored left to right."""
    x = batch.x
    if not isinstance(x, Tensor) or (flip and x.dim() != 4):
        told = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(
            f"at's gradients are in the inputs, but these are {told}; give pictures "
            "(B, C, H, W), or gradient=0 and symmetry=0"
        )
    x = x if x.is_floating_point() else x.float() / 255
    return batch.replace(x=(x.flip(3) if flip else x).detach().clone().requires_grad_())


@dataclass(frozen=True)
class AT(Objective):
    """A student is taught where each stage of the teacher is active: its attention maps.

    label * CE(y, s) + at * (the sum over stages of apart(q_s, q_t)) + kd * tau^2 KL(t || s) (0),
    q = Q / |Q|, Q = sum_c |A_c|^p over the channels of a stage's output A, or max_c (`pool`); apart
    is the mean of (q_s - q_t)^2 over places, or with form "norm" |q_s - q_t| / 2, where at = 0.1.
    The stages are `blocks` on both sides. `at` falls linearly to at * (1 - fade) in the last epoch.
    Gradient-based, with J = d CE(y, z(x)) / dx of each sample:
    + gradient * apart(J_s, J_t) (0) + symmetry * apart(J_s(x), flip(J_s(flip(x)))) (0), mirrored
    left to right; apart is |.|^2 / 2 there, or |.| / 2.

    Trained: the student, with `gradient` or `symmetry` through second derivatives. Frozen: the
    teacher.
    Raises: UsageError for stages that are no maps, squares of tokens or vectors, and gradients in
    inputs that are no numbers, or mirrored ones that are no pictures.
    Source: Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928, sections 3.1 and 3.2; the form and
    its weight from the authors' code, p = 2 from both.
    Relatives: `fitnets` compares what is seen, by a projector; `e2kd` compares explanations of one
    class.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]]]), torch.ones(1, 1, 1, 2)
        >>> round(float(apart(attention(a), attention(b))), 6)
        0.051317
    """

    label: float = number(1.0, least=0)
    at: float = number(1000.0, least=0)
    p: float = number(2.0, least=1)
    pool: Literal["sum", "max"] = "sum"
    form: Form = "square"
    fade: float = number(0.0, least=0, most=1)  # share of at that is gone in the last epoch
    gradient: float = number(0.0, least=0)
    symmetry: float = number(0.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    card = CARD

    def asks(self) -> tuple[str, ...]:
        """The card's needs, and the teacher's graph where its input gradients are matched."""
        return (*CARD.needs, "teacher:again", "teacher_graph") if self.gradient else CARD.needs

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """For gradients in the inputs such that the student's may end in."""
        return (leaf(batch) if self.gradient or self.symmetry else batch), batch

    def _slopes(self, one: Tensor, other: Tensor) -> Tensor:
        """How far apart two input gradients (B, ...) are."""
        one, other = one.flatten(1), other.flatten(1)
        return apart(one, other, self.form) * (one.shape[1] / 2 if self.form == "square" else 1)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `at`, `gradient`, `symmetry` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.at:
            pairs = [alike(a, b) for a, b in paired(s.blocks, t.blocks, DOES)]
            maps = ([attention(x, self.p, self.pool) for x in pair] for pair in pairs)
            total = torch.stack([apart(a, b, self.form) for a, b in maps]).sum()
            fraction = clock.epoch / max(1, clock.epochs - 1)
            out["at"] = ramp(fraction, self.at, self.at * (1 - self.fade)) * total
        if self.gradient or self.symmetry:
            mine = slope(s, batch.y, True)
        if self.gradient:
            theirs = slope(t(leaf(t.batch)), batch.y, False).detach()
            out["gradient"] = self.gradient * self._slopes(mine, theirs)
        if self.symmetry:
            mirrored = slope(s(leaf(batch, flip=True)), batch.y, True).flip(3)
            out["symmetry"] = self.symmetry * self._slopes(mine, mirrored)
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        return out
