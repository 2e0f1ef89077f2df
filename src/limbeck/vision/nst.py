"""NST - the student's neurons are to like the places that the teacher's neurons like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side
from limbeck.vision._kit.maps import alike, unit
from limbeck.vision._kit.stages import paired

CARD = Card(
    key="nst",
    title="Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    year=2017,
    arxiv="1707.01219",
    code="https://github.com/TuSimple/neuron-selectivity-transfer",
    kinds=("feature", "distribution"),
    needs=("feature|blocks", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The paper writes half the weight before the distance; here, as in the authors' code, "
    "the weight itself. That code leaves out the teacher's own term, which has no gradient, and "
    "divides by lengths of 1e-5 at least, where here a channel of zeros stays zero. Over which "
    "pairs the Gaussian kernel's width is a mean is not known; here over those of a student's and "
    "a teacher's channel. Grids of unlike size are averaged down, where the code has equal ones.",
)
DOES = "nst compares the patterns of a map's channels"
Kernel = Literal["linear", "polynomial", "gaussian"]


def mmd(x: Tensor, t: Tensor, degree: int = 2, offset: float = 0.0) -> Tensor:
    """Squared maximum mean discrepancy of two sets, by the kernel (x . t + offset)^degree.

    It is the mean over all pairs of x, and of t, less twice that over pairs of one each. Degree 1
    is the linear kernel, |mean x - mean t|^2; degree 2 without offset |X'X / C - T'T / D|^2.
    Shapes: x (B, C, P), t (B, D, P) -> (B,).
    """
    if degree == 1:
        return (x.mean(1) - t.mean(1)).square().sum(1)
    if degree == 2 and offset == 0 and x.shape[2] < max(x.shape[1], t.shape[1]):
        gram = (y.mT @ y / y.shape[1] for y in (x, t))  # of places: fewer numbers than of pairs
        return (next(gram) - next(gram)).square().sum((1, 2))
    within, beyond, across = (a @ b.mT for a, b in ((x, x), (t, t), (x, t)))
    means = [(k + offset).pow(degree).mean((1, 2)) for k in (within, beyond, across)]
    return means[0] + means[1] - 2 * means[2]


def gaussian_mmd(x: Tensor, t: Tensor) -> Tensor:
    """The same by the kernel exp(-|x - t|^2 / (2 sigma^2)).

    sigma^2 is the mean of |x - t|^2 over the pairs of one each of this sample, without gradient.
    Shapes: x (B, C, P), t (B, D, P) -> (B,).
    """

    def distances(a: Tensor, b: Tensor) -> Tensor:
        lengths = (y.square().sum(2) for y in (a, b))
        return next(lengths)[:, :, None] + next(lengths)[:, None] - 2 * a @ b.mT

    across = distances(x, t)
    width = 2 * across.detach().mean((1, 2), keepdim=True)
    width = width.where(width > 0, torch.inf)
    means = [(-d / width).exp().mean((1, 2)) for d in (distances(x, x), distances(t, t), across)]
    return means[0] + means[1] - 2 * means[2]


@dataclass(frozen=True)
class NST(Objective):
    """A student is taught which patterns of places the teacher's neurons are active at.

    label * CE(y, s) + nst * MMD^2({x_i}, {t_j}) + kd * tau^2 KL(t || s) (0), x_i and t_j the
    channels of both sides' maps for one picture, as vectors over places of length 1, and MMD^2 =
    mean k(x, x') + mean k(t, t') - 2 mean k(x, t), the mean over samples. `kernel` "linear" is
    x . t; "polynomial" (x . t + offset)^degree; "gaussian" exp(-|x - t|^2 / (2 sigma^2)), with
    sigma^2 the mean of |x - t|^2. How many channels there are on either side, and in which order,
    makes no difference. `at` is "feature", the last maps, or "blocks", the sum over all stages.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError for what is no map, no square of tokens and no vector; a map of one place,
    like a vector, has no patterns.
    Source: Huang and Wang, arXiv 1707.01219, section 4; the polynomial kernel's weight from the
    authors' code. The paper's Gaussian kernel has 100; the field's comparisons at="blocks".
    Relatives: `at` compares the mean of channels' squares; `fitnets` channel by channel.

    Example:
        >>> import torch
        >>> x, t = torch.tensor([[[0.6, 0.8], [1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> round(float(mmd(x, t)), 6), round(float(gaussian_mmd(x, t)), 6)
        (1.04, 0.577186)
    """

    label: float = number(1.0, least=0)
    nst: float = number(50.0, least=0)
    kernel: Kernel = "polynomial"
    degree: int = number(2, least=1)
    offset: float = number(0.0, least=0)
    at: Literal["feature", "blocks"] = "feature"
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    card = CARD

    def _apart(self, s: Tensor, t: Tensor) -> Tensor:
        """The distance of each sample's maps s (B, C, H, W) and t (B, D, H, W) -> (B,)."""
        x, y = (unit(side.flatten(2)) for side in (s, t))
        with torch.autocast(x.device.type, enabled=False):  # products stay in float32
            if self.kernel == "gaussian":
                return gaussian_mmd(x, y)
            degree = self.degree if self.kernel == "polynomial" else 1
            return mmd(x, y, degree, self.offset)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `nst` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.nst:
            pairs = paired(getattr(s, self.at), getattr(t, self.at), DOES)
            each = [self._apart(*alike(a, b)).mean() for a, b in pairs]
            out["nst"] = self.nst * torch.stack(each).sum()
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        return out
