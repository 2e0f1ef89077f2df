"""OFA-KD - every stage of the student answers for itself, to a teacher of any architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import check_classes
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.run import rng
from limbeck.core.views import Side
from limbeck.errors import Missing, UsageError
from limbeck.vision.ofa_kd.branches import branch

CARD = Card(
    key="ofa_kd",
    title="One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge "
    "Distillation",
    year=2023,
    arxiv="2310.19444",
    code="https://github.com/Hao840/OFAKD",
    kinds=("response", "cross_architecture"),
    needs=("student:blocks", "logits", "teacher:logits|teacher:embedding", "y"),
    gives="model",
    world="digits(teacher='cnn-large', student='vit-small')",
    stages=("fit",),
    tiny={},
    departs="The student's width is that of its last stage, where the code takes its features "
    "before the head; the teacher's does not count where it shows no embedding. Branches of "
    "vectors, as plain layers of an MLP give, are this project's: linear layers in the place of "
    "the convolutions. Tokens of another width than the last stage's, which the code's branches "
    "do not take, pass a linear layer; of several tokens before the patches the first is read; a "
    "grid of odd side is not merged further. A width that four heads do not divide has fewer.",
)
STAGES = 4
PLACES = (2 / 12, 4 / 12, 10 / 12, 1.0)  # of the four stages in a model of equal blocks


def ofa_loss(
    v: Tensor,
    t: Tensor,
    y: Tensor,
    gamma: float = 1.0,
    tau: float = 1.0,
    form: Literal["release", "paper"] = "release",
) -> Tensor:
    """The adaptive target loss of each sample, with p = softmax(t / tau), q = softmax(v / tau).

    form "release": -sum_c ((p_c + m_c)^gamma - m_c) log q_c, m the one-hot label y;
    "paper": -(1 + p_y)^gamma log q_y - sum of p_c log q_c over c != y, which has CE(y, q) in it.
    At gamma 1 the two differ by CE(y, q), and the first is KL(p || q) and p's entropy.
    Shapes: v, t (B, C) logits, y (B,) class numbers -> (B,).
    """
    check_classes(v, t)
    wide = torch.promote_types(v.dtype, torch.float32)
    p, log_q = (t.to(wide) / tau).softmax(1), (v.to(wide) / tau).log_softmax(1)
    m = F.one_hot(y, v.shape[1]).to(wide)
    powers = (p + m) ** gamma
    target = powers - m if form == "release" else torch.where(m > 0, powers, p)
    return -(target * log_q).sum(1)


def stages_of(blocks: Sequence[Any] | Tensor) -> list[Any]:
    """The stages among blocks: all up to four; of more, four at the places of the paper's ViT.

    Of twelve `blocks` that is the second, fourth, tenth and twelfth; a lone tensor is one stage.
    """
    blocks = [blocks] if isinstance(blocks, Tensor) else blocks
    n = len(blocks)
    return list(blocks) if n <= STAGES else [blocks[round(n * place) - 1] for place in PLACES]


@dataclass(frozen=True)
class OFAKD(Objective):
    """A student is taught the teacher's logits at its end and, by branches, at each of its stages.

    label * CE(y, s) + final * l(s) + branches * (the sum of l(branch_k) over the stages k in `at`),
    l the mean of `ofa_loss` at `gamma` and `tau`, in the `form` of the code or of the paper. What
    the teacher has inside is not read, so that it may be of any architecture.
    The stages are the student's `blocks`, all up to four, or four of more; `at` names some by
    number from 1 (none: all). gamma is one number for all, or one for each branch and one for the
    end. A stage's branch is made by what it gives: a map, tokens, which are merged to no less than
    `grid` patches a side, or a vector; the fewer stages follow, the smaller it is.
    Of soft labels (B, C) the mask is their largest.

    Trained: the student and its branches, which are then dropped. Frozen: the teacher.
    Raises: UsageError for a stage of another form, a number in `at` that is no stage, or another
    number of gammas.
    Source: Hao et al., NeurIPS 2023, arXiv 2310.19444, section 3; constants, branches and the
    release's form from the authors' code: gamma 1 is its default and its example on CIFAR-100 (Swin
    to ResNet18), 1.5 that on ImageNet (DeiT to ResNet18). Above 1 the loss grows by up to 2^gamma -
    1, where a lower rate helps.
    Relatives: branches = 0 at gamma 1 is `kd` at tau 1; `dhkd` splits heads too; `fitnets` compares
    what is inside, which another architecture lays out otherwise (`limbeck doctor` tells by CKA how
    much).

    Example:
        >>> import torch
        >>> t, v, y = torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1, 2), torch.tensor([0])
        >>> round(float(ofa_loss(v, t, y, gamma=1.5)), 6)
        1.042768
    """

    label: float = number(1.0, least=0)
    final: float = number(1.0, least=0)
    branches: float = number(1.0, least=0)
    gamma: tuple[float, ...] = (1.0,)  # above 0
    tau: float = number(1.0, above=0)
    form: Literal["release", "paper"] = "release"
    at: tuple[int, ...] = ()  # numbers of stages, from 1
    grid: int = number(7, least=1)
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma or not all(g > 0 for g in self.gamma):
            raise UsageError(f"OFAKD.gamma is {self.gamma}; each must be above 0")
        if len(set(self.at)) < len(self.at) or not all(k >= 1 for k in self.at):
            raise UsageError(f"OFAKD.at is {self.at}; name stages from 1, each once")

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """A branch for each stage."""
        if not self.branches:
            return nn.Module()
        stages, draws = stages_of(s.blocks), rng("branches")
        last = width(stages[-1])
        wide, classes = max(last, self._teachers(t)), s.logits.shape[1]
        made = {}
        for k in self._places(len(stages)):
            left = len(stages) - k
            made[str(k)] = branch(stages[k - 1], left, last, wide, classes, self.grid, draws)
        return nn.ModuleDict({"branches": nn.ModuleDict(made)})

    def _teachers(self, t: Side) -> int:
        try:
            return width(t.embedding)
        except Missing:  # a cache or a black box may show logits alone
            return 0

    def _places(self, stages: int) -> tuple[int, ...]:
        """The numbers of the stages with a branch."""
        beyond = [k for k in self.at if k > stages]
        if beyond:
            raise UsageError(f"OFAKD.at names stage {beyond[0]}, but the student has {stages}")
        places = self.at or tuple(range(1, stages + 1))
        if len(self.gamma) not in (1, len(places) + 1):
            raise UsageError(
                f"OFAKD.gamma has {len(self.gamma)} values; give one, or {len(places) + 1}: one "
                "for each branch and one for the end"
            )
        return places

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `final` and `branches`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.final:
            out["final"] = self.final * self._loss(s.logits, t, batch, self.gamma[-1])
        if self.branches:
            stages, total = stages_of(s.blocks), torch.zeros((), device=t.logits.device)
            places = self._places(len(stages))
            gammas = self.gamma if len(self.gamma) > 1 else self.gamma * len(places)
            for k, gamma in zip(places, gammas, strict=False):  # the last gamma is the end's
                head = parts["branches"][str(k)]
                total = total + self._loss(head(stages[k - 1]), t, batch, gamma)
            out["branches"] = self.branches * total
        return out

    def _loss(self, v: Tensor, t: Side, batch: Batch, gamma: float) -> Tensor:
        y: Tensor = batch.y if batch.y.dim() == 1 else batch.y.argmax(1)
        return ofa_loss(v, t.logits, y, gamma, self.tau, self.form).mean()


def width(x: Tensor) -> int:
    """Channels of a map `x` (B, C, H, W), numbers of a token (B, T, D) or of a vector (B, D)."""
    return x.shape[1] if x.dim() == 4 else x.shape[-1]
