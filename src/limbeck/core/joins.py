"""How the gradients of named terms become one: summed, routed, projected, or with momenta apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.core.method import Clock
from limbeck.core.task import Optimiser
from limbeck.errors import Missing, UsageError

Gradients = list[Tensor | None]  # one for each parameter of the phase, in its order


def under(name: str, prefix: str) -> bool:
    """Whether a dotted name is the prefix or lies below it."""
    return name == prefix or name.startswith(prefix + ".")


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, where a missing gradient is not the same as a zero one."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def all_added(a: Gradients | None, b: Gradients) -> Gradients:
    """The sums of two lists; `a` may not be there yet."""
    return b if a is None else [added(x, y) for x, y in zip(a, b, strict=True)]


class Join:
    """How the terms' gradients become one.

    `per_term` False: the terms are summed before the backward pass.
    """

    per_term = True

    def join(self, grads: Mapping[str, Gradients], names: Sequence[str], clock: Clock) -> Gradients:
        """One gradient for each parameter, from each term's."""
        raise NotImplementedError

    def optimiser(self, spec: Optimiser, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser that takes this join's gradients."""
        return spec.make(params)


@dataclass(frozen=True)
class Total(Join):
    """Down (or up) the sum of the terms."""

    per_term = False


@dataclass(frozen=True)
class Routed(Join):
    """Each named term's gradient reaches only the parameters under its prefixes.

    Terms that are not named reach all.
    """

    routes: Mapping[str, tuple[str, ...]]

    def join(self, grads: Mapping[str, Gradients], names: Sequence[str], clock: Clock) -> Gradients:
        unknown = set(self.routes) - set(grads)
        if unknown:
            raise Missing(
                f"Routed names the terms {sorted(unknown)}, but the objective gives "
                f"{', '.join(grads)}"
            )
        out: Gradients = [None] * len(names)
        for term, each in grads.items():
            prefixes = self.routes.get(term)
            for i, name in enumerate(names):
                if prefixes is None or any(under(name, p) for p in prefixes):
                    out[i] = added(out[i], each[i])
        return out


def pcgrad(grads: Mapping[str, Gradients], clock: Clock) -> Gradients:
    """Projected conflicting gradients (Yu et al. 2020, arXiv 2001.06782).

    Each term's gradient loses its component against every other term's, in an order drawn by
    place; then they are summed. Parameters that a term does not reach count as zero.
    """
    terms = list(grads)
    columns = zip(*grads.values(), strict=True)
    shapes = [next((g for g in column if g is not None), None) for column in columns]

    def flat(each: Gradients) -> Tensor:
        there = [(g, s) for g, s in zip(each, shapes, strict=True) if s is not None]
        return torch.cat([(torch.zeros_like(s) if g is None else g).flatten() for g, s in there])

    vectors = {t: flat(grads[t]) for t in terms}
    total = torch.zeros_like(vectors[terms[0]])
    rng = clock.rng("pcgrad")
    for t in terms:
        v = vectors[t].clone()
        others = [u for u in terms if u != t]
        for k in torch.randperm(len(others), generator=rng).tolist():
            u = vectors[others[k]]
            dot = v @ u
            v = v - torch.where(dot < 0, dot / (u @ u).clamp_min(1e-30), torch.zeros_like(dot)) * u
        total = total + v
    out: Gradients = []
    for s in shapes:
        if s is None:
            out.append(None)
        else:
            out.append(total[: s.numel()].view_as(s))
            total = total[s.numel() :]
    return out


@dataclass(frozen=True)
class Surgery(Join):
    """A rule over whole gradients: `rule(grads by term, clock) -> gradients`."""

    rule: Callable[[Mapping[str, Gradients], Clock], Gradients] = pcgrad

    def join(self, grads: Mapping[str, Gradients], names: Sequence[str], clock: Clock) -> Gradients:
        return self.rule(grads, clock)


@dataclass(frozen=True)
class PerTerm(Join):
    """SGD with a momentum buffer for each group of terms.

    The optimiser's learning rate and weight decay are the budget's; its momentum gives way to
    these, and there is no Nesterov step.

    Args:
        momenta: term (or prefix of terms) -> momentum; "" is all others.
        alone: momentum of a parameter that only one group reaches; None keeps the group's own.
        decay: the group whose gradient takes the weight decay; where it does not reach, the group
            that does.
    """

    momenta: Mapping[str, float]
    alone: float | None = None
    decay: str = ""

    def group(self, term: str) -> str:
        """The most precise group that a term belongs to."""
        last = term.rsplit(".", 1)[-1]
        fits = [g for g in self.momenta if g in ("", last) or under(term, g)]
        if not fits:
            raise Missing(
                f"PerTerm has no momentum for the term '{term}'; name it, or give '' for all others"
            )
        return max(fits, key=len)

    def grouped(self, grads: Mapping[str, Gradients]) -> dict[str, Gradients]:
        """Gradients by group, in the groups' order."""
        out: dict[str, Gradients] = {}
        for term, each in grads.items():
            g = self.group(term)
            out[g] = all_added(out.get(g), each)
        return out

    def join(self, grads: Mapping[str, Gradients], names: Sequence[str], clock: Clock) -> Gradients:
        joined: Gradients = [None] * len(names)
        for each in grads.values():
            joined = all_added(joined, each)
        return joined

    def optimiser(self, spec: Optimiser, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        if spec.name != "sgd":
            raise UsageError(
                "momenta for each term are defined for SGD; the budget's optimiser is "
                f"'{spec.name}', give Optimiser('sgd', ...)"
            )
        return TermSGD(params, self, spec)


class TermSGD(torch.optim.Optimizer):
    """SGD over groups of terms: v_g <- mu_g v_g + grad_g; theta <- theta - lr sum_g v_g.

    One group's gradient takes the weight decay; buffers start as the first gradient.
    """

    def __init__(self, params: list[nn.Parameter], join: PerTerm, spec: Optimiser) -> None:
        self.join = join
        super().__init__(
            params, {"lr": spec.lr, "weight_decay": spec.weight_decay, "maximize": spec.maximise}
        )

    @torch.no_grad()
    def step_groups(self, grads: Mapping[str, Gradients]) -> None:
        """One step from each group's gradients, in the order of this optimiser's parameters."""
        group = self.param_groups[0]
        for i, p in enumerate(group["params"]):
            reach = {g: grad for g, each in grads.items() if (grad := each[i]) is not None}
            pull = p * group["weight_decay"]  # of the weights before any group moves them
            decayed = self.join.decay if self.join.decay in reach else next(iter(reach), None)
            for g, grad in reach.items():
                grad = -grad if group["maximize"] else grad
                if g == decayed and group["weight_decay"]:
                    grad = grad + pull
                mu = self.join.momenta[g]
                if len(reach) == 1 and self.join.alone is not None:
                    mu = self.join.alone
                state = self.state[p]
                key = f"momentum/{g}"
                if key in state:
                    state[key].mul_(mu).add_(grad)
                else:
                    state[key] = grad.clone()
                p.add_(state[key], alpha=-group["lr"])
