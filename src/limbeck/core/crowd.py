"""Several teachers at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.signals import Mixture, Signal
from limbeck.core.teacher import Setting, Teacher
from limbeck.core.teachers import Frozen
from limbeck.core.views import Fixed, Side
from limbeck.errors import UsageError


@dataclass(eq=False)
class Crowd(Teacher):
    """Several teachers. `t.members` are their sides; `t.logits` and `t.signal` are their mixture.

    The latter is of models of text with one tokenizer: at each place the mean of their
    probabilities.

    Args:
        teachers: at least one teacher or module.
        mix: "probability": log sum_k w_k softmax(z_k); "log": sum_k w_k log_softmax(z_k).
        weights: None (equal), one number for each member, or f(batch, [logits (B, C)]) -> (B, K);
            rows are normalised.
        drop: each member is left out of a sample's mixture with this probability; the last one
            (of those with a weight) stays.
    """

    teachers: Sequence[Any]
    mix: Literal["probability", "log"] = "probability"
    weights: Sequence[float] | Callable[[Batch, list[Tensor]], Tensor] | None = None
    drop: float = 0.0

    def __post_init__(self) -> None:
        if not self.teachers:
            raise UsageError("a Crowd was given no teachers; it needs at least one")
        self.teachers = tuple(t if isinstance(t, Teacher) else Frozen(t) for t in self.teachers)

    def _open(self, setting: Setting) -> None:
        k = len(self.teachers)
        self._live = [t.attach(setting.member(i, k)) for i, t in enumerate(self.teachers)]

    def side(self, batch: Batch, clock: Clock) -> Side:
        members = [m.side(batch, clock) for m in self._live]

        def mixture() -> Mapping[str, Any]:
            return _Lazy(
                {
                    "members": lambda: members,
                    "logits": lambda: self._mixture([m.logits for m in members], batch, clock),
                    "signal": lambda: self._signals([m.signal for m in members]),
                }
            )

        why = "a Crowd's members are asked as t.members[k]"
        return Fixed("teacher", mixture, batch, self._asked, why)

    def _mixture(self, logits: list[Tensor], batch: Batch, clock: Clock) -> Tensor:
        z = torch.stack([x.float().log_softmax(-1) for x in logits], 1)  # (B, K, C)
        if callable(self.weights):
            w = self.weights(batch, logits)
        else:
            given = torch.as_tensor(
                self.weights or [1.0] * len(logits), dtype=z.dtype, device=z.device
            )
            w = given.expand(len(z), -1)
        if self.drop:
            draws = clock.rng("crowd", batch.index).rand(len(logits)).to(z.device) * (w > 0)
            w = w * ((draws >= self.drop) | (draws == draws.max(1, keepdim=True).values))
        w = w / w.sum(1, keepdim=True)
        shape = (len(z), -1, *[1] * (z.dim() - 2))
        return (
            (z + w.log().view(shape)).logsumexp(1)
            if self.mix == "probability"
            else (z * w.view(shape)).sum(1)
        )

    def _signals(self, signals: list[Signal]) -> Mixture:
        """The mixture of what language models show."""
        if callable(self.weights) or self.drop or self.mix != "probability":
            raise UsageError(
                "a Crowd of language models is mixed in probability by fixed weights; give "
                "mix='probability', numbers for weights, and drop=0"
            )
        given = self.weights or [1.0] * len(signals)
        return Mixture(tuple(signals), tuple(w / sum(given) for w in given))

    def begin(self, step: Any) -> None:
        for m in self._live:
            m.begin(step)

    def check(self, table: Any) -> None:
        for m in self._live:
            m.check(table)

    def before_step(self, step: Any, clock: Clock) -> None:
        for m in self._live:
            m.before_step(step, clock)

    def after_step(self, step: Any, clock: Clock) -> None:
        for m in self._live:
            m.after_step(step, clock)

    def state(self) -> dict[str, Tensor]:
        return {f"{k}/{n}": v for k, m in enumerate(self._live) for n, v in m.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for k, m in enumerate(self._live):
            m.load(
                {n.split("/", 1)[1]: v for n, v in state.items() if n.split("/", 1)[0] == str(k)}
            )

    def close(self) -> None:
        for m in reversed(self._live):  # the first to come saw the modes as they were
            m.close()

    @property
    def asked(self) -> set[str]:
        return self._asked.union(*(m.asked for m in self._live))

    def identity(self) -> str:
        return " ".join(t.identity() for t in self.teachers)

    @property
    def repeats(self) -> bool:
        return not self.drop and not callable(self.weights) and all(m.repeats for m in self._live)


class _Lazy(Mapping[str, Any]):
    """Entries that are made when they are first read."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]]) -> None:
        self._makers, self._made = makers, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Any:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
