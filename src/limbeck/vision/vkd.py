"""V_kD - a projector that keeps all inner products, and a normalised teacher to match."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.run import rng
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="vkd",
    title="VkD: Improving Knowledge Distillation using Orthogonal Projections",
    year=2024,
    arxiv="2403.06213",
    code="https://github.com/roymiles/vkd",
    kinds=("feature", "response", "cross_architecture"),
    needs=("feature", "logits", "y"),
    gives="model",
    world="digits(student='vit-small')",
    stages=("fit",),
    tiny={},
    departs="The projector is the matrix exponential of the paper at all widths; the code takes "
    "torch's Householder form where the widths differ, which its own weight decay makes zero in "
    "one step (with torch 2.14). Decay pulls this one to its start. Of whitening there is no "
    "code: here it is ZCA over a micro-batch, where directions without variance stay zero. Both "
    "logit terms act on the student's one head unless heads=2. Mixup, cutmix and label smoothing "
    "are left to the data. A projector into fewer dimensions than the student has, which the paper "
    "does not need, has orthonormal rows. The convolutional stem and the distillation token are "
    "of the student's architecture. The object detector and the image generator that the feature "
    "loss is added to are other tasks; the detector's code matches several layers, standardised "
    "over the batch on both sides.",
)


def gathered(x: Tensor, pooled: bool = True) -> Tensor:
    """Feature vectors: the mean over places, or with pooled=False each place's own.

    Shapes: x a map (B, D, H, W), tokens (B, T, D) or vectors (B, D) -> (B, D); not pooled, of a map
    or tokens (B, T, D).
    """
    if x.dim() not in (2, 3, 4):
        raise UsageError(
            f"vkd's feature has the shape {tuple(x.shape)}, which is no map (B, D, H, W), no "
            "tokens (B, T, D) and no vector (B, D); tap another module"
        )
    x = x.float()
    if x.dim() == 2:
        return x
    tokens: Tensor = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
    return tokens.mean(1) if pooled else tokens


def whitened(z: Tensor) -> Tensor:
    """(z - mean) cov^(-1/2): no mean, and where z has full rank the identity as covariance.

    With the centred z = U S V^T it is sqrt(N) U V^T; directions without variance stay zero.
    Shapes: z (N, D) -> (N, D).
    """
    u, s, v = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    there = s > s[0] * max(z.shape) * torch.finfo(z.dtype).eps
    out: Tensor = math.sqrt(len(z)) * (u * there) @ v
    return out


def normalised(z: Tensor, kind: str = "layer") -> Tensor:
    """The teacher's features as they are matched.

    kind: "layer" takes mean and deviation over D off each vector z, "whiten" is `whitened` over all
    of them, "none" is z.
    Shapes: z (..., D) -> (..., D).
    """
    if kind == "whiten":
        return whitened(z.flatten(0, -2)).view_as(z)
    return F.layer_norm(z, tuple(z.shape[-1:])) if kind == "layer" else z


def columns(w: Tensor, thin: bool | None = None) -> Tensor:
    """The first K columns of exp(S), S = [w 0] - [w 0]^T: orthonormal for every w.

    By one of two roads to the same number; None takes the cheaper one. S itself is of size N.
    `thin` uses that S = X Y^T with X = [w, -E], Y = [E, w] and E the first K columns of I, so that
    exp(S) E = E + X phi(Y^T X) Y^T E. Here phi(M) = sum_j M^j / (j + 1)!, which stands in a corner
    of exp([[M, I], [0, 0]]), of size 4 K.
    Shapes: w (N, K), K <= N -> (N, K).
    """
    n, k = w.shape
    if thin is None:
        thin = 4 * k < n
    if not thin:
        wide = F.pad(w, (0, n - k))
        return torch.matrix_exp(wide - wide.T)[:, :k]
    e = torch.eye(n, k, dtype=w.dtype, device=w.device)
    x, y = torch.cat((w, -e), 1), torch.cat((e, w), 1)
    one = torch.eye(2 * k, dtype=w.dtype, device=w.device)
    block = F.pad(torch.cat((y.T @ x, one), 1), (0, 0, 0, 2 * k))
    phi = torch.matrix_exp(block)[: 2 * k, 2 * k :]
    return e + x @ (phi @ (y.T @ e))


class Orthogonal(nn.Module):
    """z -> P z with orthonormal columns, P^T P = I; orthonormal rows into fewer dimensions.

    P is base times the `columns` of the lower triangle of turn, which is learnt; base is a fixed
    random rotation. It is orthogonal whatever step is made, and starts as base's first columns.

    Args:
        here: the student's width.
        there: the teacher's.
        generator: draws base.
    """

    base: Tensor

    def __init__(self, here: int, there: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        large, small = max(here, there), min(here, there)
        self.wide = here > there
        self.turn = nn.Parameter(torch.zeros(large, small))
        base = nn.init.orthogonal_(torch.empty(large, large), generator=generator)
        self.register_buffer("base", base)

    def matrix(self) -> Tensor:
        """P, (there, here)."""
        p = self.base @ columns(self.turn.tril(-1))
        return p.T if self.wide else p

    def forward(self, z: Tensor) -> Tensor:
        """(..., here) -> (..., there), in full precision."""
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(z.float(), self.matrix())


class Averaged(nn.Module):
    """A student of two heads as one classifier: the mean of both logits."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """From what the student takes -> (B, C); a student that averages itself is left to."""
        out = self.student(*args, **kwargs)
        return (out[0] + out[1]) / 2 if isinstance(out, tuple | list) else out


@dataclass(frozen=True)
class VkD(Objective):
    """A student's last feature is taught the teacher's, through an orthogonal projector.

    label * CE(y, s) + vkd * smooth_l1(P z_s, norm(z_t)) + kl * tau^2 KL(softmax(t / tau) ||
    softmax(s / tau)); z_s and z_t are the features' means over places, or with pooled=False each
    place's, for dense tasks. P keeps lengths and angles, so that the student itself must take on
    the teacher's similarities. `normalise` is the task's: "layer" to tell classes apart,
    "whiten" to generate (over a micro-batch: give large ones), "none" the control, as is
    projector="linear", which is unconstrained.

    With heads=2 the student gives (logits, distillation logits) in train mode; the second are
    matched in `kl`, and what is delivered averages both.

    Trained: the student, and the projector, which is not delivered. Frozen: the teacher.
    Raises: UsageError for features of unknown shape, or of different numbers of places without
    pooling; Missing where heads=2 and there is one output.
    Source: Miles, Elezi and Deng, CVPR 2024, arXiv 2403.06213, section 3; weights, tau and
    the loss from the authors' code for DeiT students.
    Relatives: `fitnets` has a free regressor and no norm; `crd` contrasts embeddings.

    Example:
        >>> import torch
        >>> p = Orthogonal(3, 5).matrix()
        >>> torch.allclose(p.T @ p, torch.eye(3), atol=1e-5)
        True
    """

    label: float = number(1.0, least=0)
    vkd: float = number(1.0, least=0)
    kl: float = number(1.0, least=0)
    tau: float = number(1.0, above=0)
    normalise: Literal["layer", "whiten", "none"] = "layer"
    projector: Literal["orthogonal", "linear"] = "orthogonal"
    pooled: bool = True
    heads: Literal[1, 2] = 1
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The projector, from the student's width to the teacher's."""
        if not self.vkd:
            return nn.Module()
        z_s, z_t = gathered(s.feature, self.pooled), gathered(t.feature, self.pooled)
        if z_s.shape[:-1] != z_t.shape[:-1]:
            raise UsageError(
                f"vkd was to match each place, but the student's features are {tuple(z_s.shape)} "
                f"and the teacher's {tuple(z_t.shape)}; tap features of one size, or pool them"
            )
        here, there = z_s.shape[-1], z_t.shape[-1]
        projector: nn.Module = nn.Linear(here, there, bias=False)
        if self.projector == "orthogonal":
            projector = Orthogonal(here, there, rng("projector"))
        return nn.ModuleDict({"projector": projector})

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `vkd` and `kl`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.vkd:
            z = parts.projector(gathered(s.feature, self.pooled)).float()
            norm = normalised(gathered(t.feature, self.pooled), self.normalise)
            out["vkd"] = self.vkd * F.smooth_l1_loss(z, norm.detach())
        if self.kl:
            own = s.logits if self.heads == 1 else s.output1
            out["kl"] = self.kl * kl(own, t.logits, self.tau).mean()
        return out

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        """The student, with heads=2 as the mean of both."""
        return student if self.heads == 1 else Averaged(student)
