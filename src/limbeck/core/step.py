"""The one wrapped module: student, parts and objective, whose forward gives the terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm

from limbeck.core.data import Batch
from limbeck.core.method import Clock, Given, Mean, Objective, Term
from limbeck.core.views import Look
from limbeck.errors import Missing, UsageError, nearest


class Step(nn.Module):
    """What Accelerate wraps and `torch.compile` sees.

    Parameters are named "student. ..." and "parts. ...".
    """

    def __init__(
        self, objective: Objective, student: nn.Module, parts: nn.Module, look: Look
    ) -> None:
        super().__init__()
        self.student, self.parts = student, parts
        self.objective, self.look = objective, look

    def forward(
        self, batch: Batch, for_student: Batch, t: Any, clock: Clock, observe: bool
    ) -> tuple[dict[str, Term], Mapping[str, Tensor]]:
        """The terms, and what is observed (if it is asked for)."""
        s = self.look.side_of(for_student)
        terms = dict(self.objective.terms(self.parts, s, t, batch, clock))
        seen = self.objective.observe(self.parts, s, t, batch) if observe else {}
        return terms, {k: v.detach() for k, v in seen.items()}

    def sees(self, batch: Batch, for_student: Batch, t: Any) -> Mapping[str, Tensor]:
        """What is observed, without terms."""
        seen = self.objective.observe(self.parts, self.look.side_of(for_student), t, batch)
        return {k: v.detach() for k, v in seen.items()}


def moving(module: nn.Module) -> list[Tensor]:
    """The buffers that torch's own layers change in a forward pass in train mode."""
    out = []
    for m in module.modules():
        if (isinstance(m, _NormBase) and m.track_running_stats) or isinstance(m, _SpectralNorm):
            out += [b for b in m.buffers(recurse=False) if b is not None]
    return out


class Unmoved:
    """Says so when asking changed a parameter, or a buffer that only `after_step` may move."""

    def __init__(self, step: nn.Module) -> None:
        free = {id(b) for b in moving(step)}
        named = [*step.named_parameters(), *step.named_buffers()]
        self._watched = [(n, b, b._version) for n, b in named if id(b) not in free]

    def check(self) -> None:
        """Compare with what was there when this was made."""
        for name, tensor, version in self._watched:
            if tensor._version != version:
                raise UsageError(
                    f"asking for the loss changed '{name}'; what a method moves without gradient "
                    "moves in after_step"
                )


def value_of(name: str, term: Term, of: int, counts: Mapping[str, Tensor]) -> Tensor:
    """The share of this micro-batch in the step's value of a term.

    `counts` are those of `Mean` terms over the whole step.
    """
    if isinstance(term, Mean):
        if of > 1 and name not in counts:
            raise Missing(
                f"the term '{name}' is a Mean, so counts() must give its count for accumulation "
                "and several processes; it gives none"
            )
        count = counts.get(name, torch.as_tensor(term.count))
        return term.sum / (count + (count == 0))  # the mean of nothing is zero
    if isinstance(term, Given):
        like = next(iter(term.gradient.values()), torch.zeros(()))
        return (like.new_zeros(()) if term.value is None else term.value.detach()) / of
    return term / of if of > 1 else term


def norms_of(
    terms: Mapping[str, Term], shares: Mapping[str, Tensor], student: nn.Module
) -> dict[str, Tensor]:
    """The norm of the student's gradient of each weighted term; none of ready gradients.

    Nothing of sharded parameters, of which a process has a part only.
    """
    params = [p for p in student.parameters() if p.requires_grad]
    if any(hasattr(p, "device_mesh") for p in params):
        return {}
    out = {}
    for name, share in shares.items():
        if isinstance(terms[name], Given):
            continue
        found: list[Tensor] = []
        if share.requires_grad and params:
            grads = torch.autograd.grad(share, params, retain_graph=True, allow_unused=True)
            found = [g for g in grads if g is not None]
        out[name] = torch.nn.utils.get_total_norm(found) if found else share.new_zeros(())
    return out


def marked(batch: Batch, shown: Batch) -> Batch:
    """The batch as a teacher sees it; marked where its inputs are not the data's own."""
    return shown if shown.columns["x"] is batch.columns["x"] else shown.replace(changed=True)


def check_terms(terms: Mapping[str, Term], step: nn.Module) -> None:
    """Terms are scalars in float32 or wider; ready gradients are of parameters, and fit them."""
    if not terms:
        raise UsageError(
            "the objective gave no terms; with every weight at zero there is nothing to train"
        )
    for name, term in terms.items():
        if isinstance(term, Given):
            _check_given(name, term, dict(step.named_parameters()))
            continue
        tensor = term.sum if isinstance(term, Mean) else term
        if not isinstance(tensor, Tensor) or tensor.dim():
            told = (
                f"a tensor of shape {tuple(tensor.shape)}"
                if isinstance(tensor, Tensor)
                else f"a {type(tensor).__name__}"
            )
            raise UsageError(
                f"the term '{name}' is {told}; a term is a scalar tensor, a Mean or a Given"
            )
        if tensor.dtype not in (torch.float32, torch.float64):
            raise UsageError(f"the term '{name}' is {tensor.dtype}; compute it in float32 or wider")


def _check_given(name: str, term: Given, named: Mapping[str, Tensor]) -> None:
    for key, gradient in term.gradient.items():
        if key not in named:
            raise Missing(
                f"the term '{name}' gives a gradient of '{key}', which is no parameter"
                f"{nearest(key, named)}"
            )
        if gradient.shape != named[key].shape:
            raise UsageError(
                f"the term '{name}' gives a gradient of shape {tuple(gradient.shape)} of '{key}', "
                f"which is {tuple(named[key].shape)}"
            )
