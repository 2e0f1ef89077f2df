"""Checks on the numbers that an objective gives for rows and views of the suite's choice.

Each looks at one phase of one fit and yields what is wrong. Student and parts are in eval mode, so
that batch normalisation and dropout are no part of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.check.desk import Desk, NothingToSee, Views
from limbeck.check.look import close, leaves, number, value
from limbeck.check.weights import weights
from limbeck.core.method import Given, Mean, Term
from limbeck.errors import UsageError

__all__ = ["EXAMINED", "NothingToSee"]

HUGE = 1e4


def accumulate(desk: Desk) -> Iterator[str]:
    """Two half batches give together what the whole batch gives: terms, and their gradient."""
    rows = torch.arange(len(desk.batch) // 2 * 2)
    whole = desk.ask(rows)
    halves = [desk.ask(half) for half in rows.chunk(2)]
    if any(list(half) != list(whole) for half in halves):
        yield f"half a batch has the terms {', '.join(halves[0])}, a whole one {', '.join(whole)}"
        return
    shares = [_share(half, halves) for half in halves]
    for name, term in whole.items():
        joined = sum(number(share[name]) for share in shares)
        if not close(number(term), joined):
            told = f"{number(term):.6g} for the batch, {joined:.6g} for its halves"
            yield f"the term '{name}' is {told}"
    gradients = torch.stack([desk.gradient(share) for share in shares])
    if not close(desk.gradient(whole), gradients.sum(0), 1e-3):
        yield "the gradient of the batch is not that of its halves"


def _share(half: Mapping[str, Term], halves: list[dict[str, Term]]) -> dict[str, Term]:
    """What one half counts for in the whole, as the engine has it."""
    out: dict[str, Term] = {}
    for name, term in half.items():
        if isinstance(term, Mean):
            means: Any = [h[name] for h in halves]
            out[name] = term.sum / sum(torch.as_tensor(mean.count) for mean in means)
        elif isinstance(term, Given):
            parts = {k: g / len(halves) for k, g in term.gradient.items()}
            out[name] = Given(parts, None if term.value is None else term.value / len(halves))
        else:
            out[name] = term / len(halves)
    return out


def order(desk: Desk) -> Iterator[str]:
    """The order of the samples in a batch makes no difference."""
    rows = torch.arange(len(desk.batch))
    turned = desk.ask(rows.flip(0))
    for name, term in desk.ask(rows).items():
        if name not in turned or not close(value(term), value(turned[name])):
            yield f"the term '{name}' changes with the order of the samples"


def doubled(desk: Desk) -> Iterator[str]:
    """A batch in which each sample stands twice has the same terms: they are means."""
    rows = torch.arange(len(desk.batch))
    twice = desk.ask(torch.cat((rows, rows)))
    for name, term in desk.ask(rows).items():
        if name not in twice or not close(value(term), value(twice[name])):
            yield f"the term '{name}' changes when each sample stands twice in the batch"


# -- edges -----------------------------------------------------------------------------------------


def _equal(views: Views) -> Views:
    """The teacher shows what the student shows, where the shapes allow it."""
    mine = {n: t for n, t in leaves(views.student)}

    def put(name: str, tensor: Tensor) -> Tensor:
        fits = (t for n, t in mine.items() if n.split(".")[0] == name and t.shape == tensor.shape)
        return next(fits, tensor).clone()

    return Views(views.student, Views({}, views.teacher).changed(put).teacher)


def _huge(views: Views) -> Views:
    """Logits as large as ten thousand."""

    def grown(name: str, tensor: Tensor) -> Tensor:
        return tensor * (HUGE / tensor.abs().max()) if name == "logits" else tensor

    return views.changed(grown)


def _zero(views: Views) -> Views:
    """Everything is zero."""
    return views.changed(lambda _, tensor: torch.zeros_like(tensor))


def _constant(views: Views) -> Views:
    """All samples look like the first one."""
    return views.changed(lambda _, tensor: tensor[:1].expand_as(tensor).clone())


EDGES: dict[str, Callable[[Views], Views]] = {
    "with a teacher that shows what the student shows": _equal,
    "with logits of 1e4": _huge,
    "with views that are zero": _zero,
    "with views that are constant over the batch": _constant,
}


def edges(desk: Desk) -> Iterator[str]:
    """Terms and gradients are finite at the edges: a batch of one sample, extreme views.

    Views are replaced only where the objective asks for entries alone, not for models.
    """
    yield from _alone(desk)
    try:
        views = desk.views()
    except NothingToSee:
        return
    for told, edge in EDGES.items():
        now = edge(views)
        now.student = Views(now.student, {}).changed(_leaf).student
        terms = desk.ask_fixed(now)[0]
        bad = [n for n, term in terms.items() if not bool(torch.isfinite(value(term)).all())]
        if bad:
            yield f"{told}, the term '{bad[0]}' is {number(terms[bad[0]])}"
        elif not _finite_gradient(desk, now, terms):
            yield f"{told}, the gradient is not finite"


def _leaf(_: str, tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def _alone(desk: Desk) -> Iterator[str]:
    """A batch of one sample has finite terms, or is refused in a sentence."""
    try:
        terms = desk.ask([0])
    except UsageError:
        return
    for name, term in terms.items():
        if not bool(torch.isfinite(value(term)).all()):
            yield f"with a batch of one sample, the term '{name}' is {number(term)}"


def _finite_gradient(desk: Desk, views: Views, terms: Mapping[str, Term]) -> bool:
    live = [v for v in map(value, terms.values()) if v.requires_grad]
    wanted = [t for _, t in leaves(views.student) if t.requires_grad]
    wanted += [p for p in desk.passes.parts.parameters() if p.requires_grad]
    if not live or not wanted:
        return True
    grads = torch.autograd.grad(sum(live, torch.zeros(())), wanted, allow_unused=True)
    return all(bool(torch.isfinite(g).all()) for g in grads if g is not None)


EXAMINED: dict[str, Callable[[Desk], Iterator[str]]] = {
    f.__name__: f for f in (accumulate, order, doubled, edges, weights)
}
