"""Batches whose responses a model writes to the data's prompts, anew or kept from before."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.data import Batch, Batches
from limbeck.core.method import Clock
from limbeck.core.text.facts import Text
from limbeck.core.text.generate import Written, generate
from limbeck.core.text.replay import Replay, prompts_of
from limbeck.core.text.seq2seq import is_pair
from limbeck.errors import UsageError

__all__ = ["OnPolicy", "Source"]

Source = Literal["data", "student", "teacher", "mixed", "replay"]


class OnPolicy(Batches):
    """A data set's batches, of which some have their responses replaced by written ones.

    Whose they are is decided once a step, the same in all micro-batches and processes. A batch that
    was written now has the column `written`, and every one that is not the data's own has
    `changed`, so that a cache of the teacher refuses it.

    Args:
        main: the data.
        text: the task's text side.
        new: tokens of a response at most.
        temperature, top_p: of the sampling.
        least: tokens of a prompt at least; plain text, which has no prompts, begins with as many.
        replay: what was written before, where a method keeps it.
    """

    def __init__(
        self,
        main: Batches,
        text: Text,
        *,
        new: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        least: int = 16,
        replay: Replay | None = None,
    ) -> None:
        self.main, self.text, self.samples, self.table = main, text, main.samples, main.table
        self.new, self.temperature, self.top_p, self.least = new, temperature, top_p, least
        self.replay = replay
        if new + 1 > text.context:
            raise UsageError(
                f"responses of {new} tokens leave no room for a prompt in a context of "
                f"{text.context}; write fewer, or give the task a longer context"
            )

    wants_own = False
    """Whether each writer's own log-probabilities are wanted in `noted`."""

    @abstractmethod
    def source(self, u: float, student: nn.Module, clock: Clock) -> Source:
        """Whose responses a step has; u is uniform in [0, 1), a function of the step."""

    def first(self) -> Batch:
        return self.main.first()

    def labels(self) -> Tensor | None:
        return self.main.labels()

    def __call__(self, student: nn.Module, teacher: Any, clock: Clock) -> Batch:
        batch = self.main(student, teacher, clock)
        u = float(clock.rng("source", torch.zeros(1, dtype=torch.int64)).rand())
        source = self.source(u, student, clock)
        if source == "data":
            return batch
        if source == "replay":
            if self.replay is None:
                raise UsageError("nothing is kept to be replayed")
            return _changed(self.replay.draw(len(batch), clock.rng("replay")))
        if is_pair(batch):
            raise UsageError(
                "only causal models write texts while a student is trained, and these are "
                "encoder-decoders; take the data's texts alone, or run seqkd"
            )
        models, weights = self._writers(source, student, teacher)
        batch = batch.to(next(student.parameters()).device)  # a teacher may have no parameters
        ids, mask = prompts_of(batch, self.new, self.text.context, self.text.pad, self.least)
        written = generate(
            models,
            ids,
            mask,
            new=self.new,
            draws=clock.rng("write", batch.index),
            eos=self.text.eos,
            pad=self.text.pad,
            temperature=self.temperature,
            top_p=self.top_p,
            weights=weights,
            own=self.wants_own,
            vocab=self.text.vocab,
        )
        made = _changed(batch.replace(x={"ids": written.ids, "mask": written.mask}, y=written.y))
        return made.replace(**self.noted(written))

    def noted(self, written: Written) -> dict[str, Tensor]:
        """Further columns of a batch that was written now."""
        return {"written": torch.ones(len(written.ids), dtype=torch.bool)}

    def share(self) -> float:
        """The teacher's share of the probability that "mixed" responses are drawn from."""
        return 0.0

    def _writers(
        self, source: Source, student: nn.Module, teacher: Any
    ) -> tuple[tuple[nn.Module, ...], tuple[float, ...]]:
        if source == "student":
            return (student,), (1.0,)
        module = getattr(teacher, "module", None)
        if module is None:
            raise UsageError(
                "this method has the teacher write responses, so it needs a live one; leave the "
                "cache or the server away"
            )
        if source == "teacher":
            return (module,), (1.0,)
        return (module, student), (self.share(), 1 - self.share())

    def state(self) -> dict[str, Any]:
        kept = {} if self.replay is None else self.replay.state()
        return {"main": self.main.state(), "replay": kept}

    def load(self, state: dict[str, Any]) -> None:
        self.main.load(state["main"])
        if self.replay is not None:
            self.replay.load(state["replay"])


def _changed(batch: Batch) -> Batch:
    return batch.replace(changed=torch.ones(len(batch), dtype=torch.bool))
