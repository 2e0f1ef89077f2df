"""The two files that `limbeck new` writes, as templates."""

from string import Template

__all__ = ["METHOD", "TEST"]

METHOD = Template('''\
"""$words - what its formula asks of the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side

# The facts of the paper, as literals: they are read without running this file. `limbeck list
# --help` says the kinds and needs there are.
CARD = Card(
    key="$key",
    title=$title,
    year=$year,
    arxiv="",
    code="",
    kinds=("response",),
    needs=("logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="none known",
)


def ${key}_loss(s: Tensor, t: Tensor, tau: float = 4.0) -> Tensor:
    """The mean over samples of what the student's logits cost beside the teacher's.

    Both are softened by the temperature tau. Shapes: s, t (B, C) logits -> ().
    """
    raise NotImplementedError("write the formula of $key")


@dataclass(frozen=True)
class $name(Objective):
    """A student is taught by a formula of the teacher's logits, beside the true labels.

    label * CE(y, s) + $key * `${key}_loss` at tau.

    Trained: the student. Frozen: the teacher.
    Source: none yet; say where the formula and each default come from.
    Relatives: `kd` matches softened probabilities.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0, -1.0]])
        >>> ${key}_loss(z, z).shape
        torch.Size([])
    """

    label: float = number(0.1, least=0)
    $key: float = number(0.9, least=0)
    tau: float = number(4.0, above=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The terms by name, weighted; a weight of zero is not computed."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.$key:
            loss = ${key}_loss(s.logits.float(), t.logits.float(), self.tau)
            out["$key"] = self.$key * loss
        return out
''')

TEST = Template('''\
"""$key: its gradient, its weights, and a run.

What is exact of the formula belongs here too: values worked by hand, identities, limits.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import limbeck
$imports

G = torch.Generator().manual_seed(5)
S, T = torch.randn(7, 5, generator=G), 3 * torch.randn(7, 5, generator=G)
Y = torch.arange(7) % 5


def terms(method: $name, t: torch.Tensor | None = T) -> dict[str, torch.Tensor]:
    """The terms on given logits; a teacher without logits fails when it is asked."""
    sides = SimpleNamespace(logits=S), SimpleNamespace(**({} if t is None else {"logits": t}))
    return method.terms(nn.Module(), *sides, Batch(x=S, y=Y), None)


def test_its_gradient_is_the_slope_of_its_loss() -> None:
    s, way = S.clone().requires_grad_(), torch.randn(7, 5, generator=G)
    slope = (torch.autograd.grad(loss(s, T), s)[0] * way).sum()
    by_hand = (loss(S + 0.01 * way, T) - loss(S - 0.01 * way, T)) / 0.02
    assert float(by_hand) != 0
    assert float(slope) == pytest.approx(float(by_hand), rel=0.02, abs=1e-3)


def test_a_batch_costs_the_mean_of_its_samples() -> None:
    each = [float(loss(s[None], t[None])) for s, t in zip(S, T, strict=True)]
    assert float(loss(S, T)) == pytest.approx(sum(each) / 7, rel=1e-4)


def test_terms_are_the_weighted_losses() -> None:
    out = terms($name(label=0.3, $key=0.6, tau=2.0))
    z = S.double()
    by_hand = (z.exp().sum(1).log() - z[torch.arange(7), Y]).mean()
    own = float(loss(S, T, 2.0))
    assert set(out) == {"label", "$key"}
    assert float(out["label"]) == pytest.approx(0.3 * float(by_hand), rel=1e-5)
    assert float(out["$key"]) == pytest.approx(0.6 * own, rel=1e-5)


def test_a_weight_of_zero_is_not_computed() -> None:
    assert set(terms($name($key=0), t=None)) == {"label"}
    assert set(terms($name(label=0))) == {"$key"}


@pytest.mark.parametrize("field", ["label", "$key", "tau"])
def test_a_field_out_of_range_is_refused(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        $name(**{field: -0.1})


def test_a_run_trains_the_student_alone() -> None:
    x, y = torch.randn(24, 6, generator=G), torch.arange(24) % 3
    teacher, student = nn.Linear(6, 3), nn.Linear(6, 3)
    before = [module.weight.detach().clone() for module in (teacher, student)]
    task = Task(teacher, student, (x, y), test=(x, y), budget=Budget(steps=8, batch=24))
    result = limbeck.run($name(), task, device="cpu")
    assert torch.equal(teacher.weight, before[0])
    assert not torch.equal(result.model.weight, before[1])
''')
