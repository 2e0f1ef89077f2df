"""`markov`: texts of a random Markov chain, whose own distribution is a teacher without fault."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bench.worlds._build import whole
from limbeck.bench.worlds._text import causal, rate, taught
from limbeck.bench.worlds._text_models import Tabular, number
from limbeck.core.evaluate import evaluating
from limbeck.core.hub import library
from limbeck.core.objectives import NextTokens
from limbeck.core.rng import generator
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.text.facts import Text
from limbeck.core.text.places import IGNORED
from limbeck.core.text.replay import right_padded
from limbeck.core.text.scores import nll
from limbeck.core.text.view import Causal

VOCAB = 32
_FLOOR = 1e-5  # of a probability, before a row is made to sum to 1
_ROWS = 992  # texts that a KL is taken over: each state of order 1 at each of 31 places
_PLAIN = Causal(VOCAB, linear=False)


def task(
    *,
    teacher: str = "true",
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    order: int = 1,
    concentration: float = 0.3,
    n: int | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: texts of 32 symbols out of 32, none of which pads or ends a text.

    The chain is at `data["source"]`; `data["kl"](model)` says how far a model is from it. A symbol
    counts as one byte.

    Args:
        teacher: 'true', the chain itself; a Llama as layers x width ('2x64') that is trained on
            eight times as many texts; or 'none'.
        student: a Llama as layers x width, 1x32 by default; or 'tabular', which has logits for each
            last symbol.
        seed: of the run; makes no difference here.
        tiny: 160 texts of 16 symbols and 24 steps.
        order: how many symbols the next one depends on, 1 or 2.
        concentration: of the Dirichlet distribution that rows are drawn from; large for flat ones.
        n: training texts; 400 by default.
        data_seed: of the chain and all texts.
    """
    order = whole("order", order, 1, 2)
    n = whole("n", n or (160 if tiny else 400), 32, 100_000)
    chain = drawn(order, number("concentration", concentration, 0.01, 100), data_seed)
    length = 16 if tiny else 32
    sizes = {"train": n, "valid": 32 if tiny else 200, "test": 32 if tiny else 1000}
    sets = {part: columns(chain, many, length, data_seed, part) for part, many in sizes.items()}
    table = student == "tabular"
    family = student or ("1x16" if tiny else "1x32")
    made = Task(
        teacher=None,
        student=(lambda: Tabular(VOCAB)) if table else _llama(family, "student", length),
        train=sets["train"],
        valid=sets["valid"],
        test=sets["test"],
        score=nll,
        budget=rate(24, 3e-2, 16) if tiny else rate(400, 2e-2 if table else 1.5e-3 / order**2),
        data={
            "text": Text(VOCAB, length, (), 0),
            "source": chain,
            "kl": KL(chain, length, data_seed),
        },
        readers={
            "student": Causal(VOCAB, linear=not table),
            "teacher": Causal(VOCAB, linear=teacher != "true"),
        },
        name="markov",
    )
    if teacher == "none":
        return made
    if teacher == "true":
        return replace(made, teacher=Frozen(chain.eval()))
    make = _llama(teacher, "teacher", length)
    much = columns(chain, 8 * n, length, data_seed, "teacher")
    alone = replace(made, train=much, readers={"student": made.readers["teacher"]})
    budget = rate(200, 1e-2, 16) if tiny else rate(1000, 5e-3)
    return replace(
        made, teacher=Frozen(taught(f"markov-{teacher}", make, NextTokens(), alone, budget))
    )


class Chain(nn.Module):
    """A Markov chain of order k that began long ago, and a causal model of it.

    Args:
        rows: probabilities (V, ..., V) of k + 1 dimensions, the last of the next symbol.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.order = rows.dim() - 1
        self.register_buffer("joint", stationary(rows)[..., None] * rows)
        self.config = library("transformers").PreTrainedConfig()  # no limit to what it can see

    joint: Tensor
    """Probability of k + 1 symbols in a row, float64."""

    @property
    def states(self) -> Tensor:
        """Probability of k symbols in a row."""
        return self.joint.sum(-1)

    def ahead(self, known: int) -> Tensor:
        """Probabilities (V, ..., V) of the next symbol, of which the last `known` are known."""
        seen = self.joint.sum(0) if known < self.order else self.joint
        return seen / seen.sum(-1, keepdim=True)

    def behind(self) -> Tensor:
        """Probabilities (V, ..., V), the last of the symbol before k others."""
        return (self.joint / self.joint.sum(0)).movedim(0, -1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        """An output with `logits` (B, T, V), log-probabilities given ids (B, T)."""
        logits = self.ahead(1).log()[input_ids]
        if self.order == 2 and input_ids.shape[1] > 1:
            there = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            both = self.ahead(2).log()[input_ids[:, :-1], input_ids[:, 1:]]
            known = there[:, :-1, None].bool()
            logits = torch.cat([logits[:, :1], torch.where(known, both, logits[:, 1:])], 1)
        return SimpleNamespace(logits=logits.float())

    def draw(self, n: int, length: int, rng: torch.Generator) -> Tensor:
        """Texts (n, length)."""
        u = torch.rand(n, length, generator=rng, dtype=torch.float64)
        first = _pick(self.states.flatten().expand(n, -1), u[:, 0])
        text = list(torch.unravel_index(first, self.states.shape))
        rows = self.ahead(self.order)
        for i in range(self.order, length):
            text.append(_pick(rows[tuple(text[-self.order :])], u[:, i]))
        return torch.stack(text, 1)

    def led_to(self, states: Tensor, length: int, rng: torch.Generator) -> Tensor:
        """Texts (n, length) that end in some states (n, k), each as likely as it is among those."""
        u = torch.rand(len(states), length, generator=rng, dtype=torch.float64)
        text, rows = list(states.unbind(1)), self.behind()
        for i in range(length - self.order):
            text.insert(0, _pick(rows[tuple(text[: self.order])], u[:, i]))
        return torch.stack(text, 1)


@dataclass(frozen=True, eq=False)
class KL:
    """KL(chain || model) of the next symbol, in nats a token, in the mean over places of a text.

    The divergence is exact at each of some texts, and states weigh what they weigh in the chain:
    of a model that looks at the state alone, as the chain does, it is exact. What leads to a state
    is drawn once for each of the places, which rounds the number for models that look at it.

    Attributes:
        chain: what is taken as the truth.
        length: of the texts.
        seed: of what leads to the states.
    """

    chain: Chain
    length: int
    seed: int

    def __call__(self, model: nn.Module) -> float:
        """The divergence of a causal model, which is put in eval mode for it."""
        chain, order = self.chain, self.chain.order
        weights = chain.states.flatten()
        each = max(1, _ROWS // len(weights))
        number = torch.arange(len(weights)).repeat_interleave(each)
        states = torch.stack(torch.unravel_index(number, chain.states.shape), 1)
        text = chain.led_to(states, self.length - 1, generator("markov", self.seed, "kl"))
        sizes = order + torch.arange(len(text)) % (self.length - order)
        seen = torch.arange(self.length - 1) >= (self.length - 1 - sizes)[:, None]
        ids, mask, _ = right_padded(text.masked_fill(~seen, 0), seen.long())
        device = (*model.parameters(), *model.buffers())[0].device
        x = {"ids": ids.to(device), "mask": mask.to(device)}
        with evaluating(model):
            logits: Tensor = _PLAIN.view(model, _PLAIN(x))["logits"].cpu()
        log_q = logits[torch.arange(len(ids)), sizes - 1].double().log_softmax(-1)
        p = chain.ahead(order)[tuple(states.unbind(1))]
        apart = (p * (p.log() - log_q)).sum(-1)
        return float((weights[number] * apart).sum() / each)


def drawn(order: int, concentration: float, data_seed: int) -> Chain:
    """A chain whose rows are drawn from a symmetric Dirichlet distribution, none of them 0."""
    shape = (VOCAB,) * (order + 1)
    alpha = torch.full(shape, concentration, dtype=torch.float64)
    rng = generator("markov", data_seed, "chain", order)
    rows = torch._standard_gamma(alpha, generator=rng)
    rows = rows / rows.sum(-1, keepdim=True) + _FLOOR
    return Chain(rows / rows.sum(-1, keepdim=True))


def stationary(rows: Tensor) -> Tensor:
    """The distribution (V, ..., V) over k symbols that a step leaves as it is."""
    shape = rows.shape[:-1]
    n, last = shape.numel(), rows.shape[-1]
    states = torch.arange(n)
    steps = torch.zeros(n, n, dtype=torch.float64)
    then = (states[:, None] * last) % n + torch.arange(last)  # the oldest symbol is forgotten
    steps.scatter_(1, then, rows.reshape(n, last))
    system = steps.T - torch.eye(n, dtype=torch.float64)
    system[-1] = 1  # the equations hold each other, and this one stands for one of them
    truth = torch.zeros(n, dtype=torch.float64)
    truth[-1] = 1
    found: Tensor = torch.linalg.solve(system, truth)
    return found.clamp_min(0).view(shape)


def columns(chain: Chain, n: int, length: int, data_seed: int, part: str) -> dict[str, Any]:
    """A set of n texts, of which all but the first symbol are trained on."""
    ids = chain.draw(n, length, generator("markov", data_seed, part))
    y = ids.clone()
    y[:, 0] = IGNORED
    x = {"ids": ids, "mask": torch.ones_like(ids)}
    return {"x": x, "y": y, "bytes": torch.full((n,), length - 1)}


def _llama(given: str, side: str, length: int) -> Callable[[], nn.Module]:
    """A factory of Llamas to which ids 0 and 1 are symbols as all others."""
    make = causal(given, side, VOCAB, length)

    def new() -> nn.Module:
        model: Any = make()
        table = model.get_input_embeddings()
        table.padding_idx = None
        for config in (model.config, model.generation_config):
            config.pad_token_id = config.eos_token_id = None
        return model  # type: ignore[no-any-return]

    return new


def _pick(rows: Tensor, u: Tensor) -> Tensor:
    """Symbols (n,) of probabilities (n, V) at which their sums go beyond u (n,)."""
    return (rows.cumsum(-1) <= u[:, None]).sum(-1).clamp_max(rows.shape[-1] - 1)
