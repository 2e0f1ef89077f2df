"""A method of one's own in a file of one's own: a card, the mathematics, a class.

`python examples/new_method.py` runs it beside others; it works wherever a method's key does:
`limbeck show examples/new_method.py` says its facts and flags, `limbeck run examples/new_method.py
--world digits` runs it, `limbeck check examples/new_method.py` puts it through the suite.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock, number
from limbeck.core.views import Side

# The facts, as literals: they are read without running this file.
CARD = limbeck.Card(
    key="sure",
    title="Listen to a Teacher Where It Is Sure",  # of the paper, once there is one
    year=2025,
    arxiv="",
    code="",
    kinds=("response",),
    needs=("logits", "y"),  # what it reads: logits of both sides, and the labels
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},  # field values with which the suite runs it in two seconds
    departs="none known",
)


def sure_loss(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """tau^2 times the mean over samples of c KL(softmax(t / tau) || softmax(s / tau)).

    c is the teacher's highest probability: a sample counts the more, the surer the teacher is.
    Shapes: s, t (B, C) logits -> ().
    """
    c = t.softmax(-1).amax(-1)
    p, log_q = (t / tau).softmax(-1), (s / tau).log_softmax(-1)
    return tau**2 * (c * F.kl_div(log_q, p, reduction="none").sum(-1)).mean()


@dataclass(frozen=True)
class Sure(limbeck.Objective):
    """A student is taught the teacher's probabilities, the more the surer the teacher is.

    label * CE(y, s) + sure * `sure_loss` at `tau`.

    Trained: the student. Frozen: the teacher.
    Source: none yet; the temperature and the weights are those that `kd` has here.
    Relatives: `kd` is the same with c = 1 for all samples.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0, -1.0]])
        >>> float(sure_loss(z, z, tau=4.0))
        0.0
    """

    label: float = number(0.1, least=0)
    sure: float = number(0.9, least=0)
    tau: float = number(4.0, above=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The terms by name, weighted; nothing is changed here, and weight zero is not computed."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.sure:
            out["sure"] = self.sure * sure_loss(s.logits.float(), t.logits.float(), self.tau)
        return out


if __name__ == "__main__":
    from limbeck.bench import worlds

    task = worlds.make("digits(n=200)")
    for name, method in {"alone": limbeck.Labels(), "kd": "kd", "sure": __file__}.items():
        score = limbeck.run(method, task).facts["score"]
        print(f"{name:<6} {score:.1%}")
