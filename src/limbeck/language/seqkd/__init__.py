"""Seq-KD - a translator, or any model that writes, is trained on what its teacher writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Epochs
from limbeck.core.engine import Fitted, fit
from limbeck.core.losses.divergences import Divergence
from limbeck.core.method import Clock, Mean, Method, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.task import Budget, Task
from limbeck.core.teachers import Nobody
from limbeck.core.text.facts import text_of
from limbeck.core.text.places import count, cross_entropy, matched
from limbeck.core.text.seq2seq import is_pair
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.language.seqkd.pruned import Masked, masks_of, put_out
from limbeck.language.seqkd.written import Writer, writing

CARD = Card(
    key="seqkd",
    title="Sequence-Level Knowledge Distillation",
    year=2016,
    arxiv="1606.07947",
    code="https://github.com/harvardnlp/seq2seq-attn",
    kinds=("response", "sequence", "pseudo_label", "stagewise", "pruning"),
    needs=("signal", "y", "teacher_weights"),
    gives="model",
    world="transduce",
    stages=("write", "student", "write_near", "inter", "retrain"),
    tiny={"beam": 2, "inter_beam": 3, "word": True, "prune": 0.5},
    departs="Models are those of transformers, not LSTMs with attention. The word-level term is "
    "KL(q, p), the paper's cross-entropy less the teacher's entropy: the same gradient. BLEU of a "
    "sentence is over tokens, with one added to matches and totals of pairs and longer n-grams. "
    "How long and how fast Seq-Inter and the pruned student are trained is chosen here: a quarter "
    "of the budget at a tenth of its rate. Causal models are taught too: their source is the "
    "prompt; plain text has none, so there the teacher goes on from the first `least` tokens. "
    "Both sides have one tokenizer, as in the paper.",
)


@dataclass(frozen=True)
class Words(Objective):
    """What a fit minimises on its texts: NLL, and the teacher's distribution at each place."""

    label: float = number(1.0, least=0)
    word: float = number(0.0, least=0)

    def asks(self) -> tuple[str, ...]:
        return ("student:signal", "y", *(("teacher:signal",) if self.word else ()))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {n: count(batch) for n in ("label", "word") if getattr(self, n)}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        out = {}
        if self.label:
            out["label"] = cross_entropy(s.signal, batch, weight=self.label)
        if self.word:
            how = Divergence("forward_kl")
            out["word"] = matched(how, s.signal, t.signal, batch, weight=self.word)
        return out


@dataclass(frozen=True)
class SeqKD(Method):
    """A student is trained on texts that its teacher writes, by beam search, in the data's place.

    On a set of texts (source, t) the loss is -log p(t | source), or with `word`
    (1 - alpha) * that + alpha * sum_j KL(q_j, p_j), q_j the teacher's distribution over token j
    given those before; means over tokens. The sets come in turn:

    - `first`: "teacher", Seq-KD: t is the best of `beam` hypotheses; "data": t as given (with
      `word` word-level distillation); "none": the student begins as it is given.
    - Seq-Inter, for `inter` of the budget's length at `rate` times its learning rate (0: not at
      all): of `inter_beam` hypotheses t is the one with the largest BLEU against the data's text.
    - `prune` > 0: that share of all weights in matrices, those of least magnitude, is set to zero
      and stays there, while the others are trained for `retrain` of the budget at `rate` times its
      learning rate, on the last set.

    A hypothesis is ranked by log q(t | source) / tokens ** `length_penalty`; 0 seeks the teacher's
    mode, which tends to be short. `new` tokens at most are written (0: half of the context, of an
    encoder-decoder all of it), after a prompt of `least` at least; of a chat the first answer.
    The texts are written once; a killed run goes on behind the last piece, and pieces are told.

    Trained: the student. Frozen: the teacher, which has to be live if it writes.
    Raises: UsageError for a teacher that cannot write, tokens that differ, nothing to be done.
    Source: Kim and Rush, EMNLP 2016, arXiv 1606.07947, sections 3.1 to 3.3; beams of 5 and 35,
    alpha. The ranking is the code's search; pruning is See et al., arXiv 1606.09274, class-blind.
    Relatives: `gkd(other="teacher", own=0)` samples the teacher's texts anew; `minillm` and
    `distillm` have the student write too.

    Example:
        >>> SeqKD(word=True, alpha=0.25).loss
        Words(label=0.75, word=0.25)
    """

    first: Literal["teacher", "data", "none"] = "teacher"  # whose texts the first fit is on
    word: bool = False  # the word-level term too, in every fit
    alpha: float = number(0.5, least=0, most=1)  # its share
    beam: int = number(5, least=1)
    inter: float = number(0.25, least=0)  # share of the budget
    inter_beam: int = number(35, least=1)
    prune: float = number(0.0, least=0, below=1)
    retrain: float = number(0.25, above=0)  # share of the budget
    rate: float = number(0.1, above=0)  # of the budget's, after the first fit
    length_penalty: float = 0.0  # 1 ranks by the mean over tokens
    new: int = number(0, least=0)  # 0: half of the context, or all
    least: int = number(8, least=1)
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first == "none" and not self.inter and not self.prune:
            raise UsageError(
                "SeqKD.first is 'none', and inter and prune are 0, so that nothing is trained; "
                "give one of them"
            )

    @property
    def loss(self) -> Words:
        """What every fit minimises."""
        word = self.alpha if self.word else 0.0
        return Words(label=round(1 - word, 12), word=word)

    def run(self, task: Task) -> Result:
        """Texts and fits in turn."""
        self._check(task)
        student, texts, fits = current().student(task), task.set("train"), list[Fitted]()
        if self.first == "teacher":
            texts = self._writer(task, self.beam)(task.the_teacher(), task.set("train"), "write")
        if self.first != "none":
            fits.append(self._fit(task, student, texts, "student", task.budget))
        if self.inter:
            writer = self._writer(task, self.inter_beam, near=True)
            texts = writer(task.the_teacher(), task.set("train"), "write_near")
            fits.append(self._fit(task, student, texts, "inter", self._short(task, self.inter)))
        report: Mapping[str, int] | None = None
        if self.prune:
            masks = masks_of(student.to(current().device), self.prune)
            put_out(student, masks)
            budget, phases = self._short(task, self.retrain), (Phase(join=Masked(masks)),)
            fits.append(self._fit(task, student, texts, "retrain", budget, phases))
            gone = sum(int((~mask).sum()) for mask in masks.values())
            report = {"weights": sum(m.numel() for m in masks.values()), "removed": gone}
        rows = [row for fitted in fits for row in fitted.log]
        return Result(model=student, report=report, log=rows)

    def _fit(
        self,
        task: Task,
        student: nn.Module,
        texts: Any,
        name: str,
        budget: Budget,
        phases: tuple[Phase, ...] | None = None,
    ) -> Fitted:
        teacher = task.the_teacher() if self.loss.word else Nobody()
        batches = Epochs(texts, "train", budget.workers)
        return fit(
            self.loss, student, teacher, batches, phases, name=name, task=task, budget=budget
        )

    def _short(self, task: Task, share: float) -> Budget:
        """A share of the task's budget, at the smaller rate."""
        slow = replace(task.budget.optimiser, lr=self.rate * task.budget.optimiser.lr)
        return replace(task.budget.part(share), optimiser=slow)

    def _writer(self, task: Task, beam: int, near: bool = False) -> Writer:
        text = text_of(task)
        pair = is_pair(task.batches().first())
        new = self.new or (text.context - 1 if pair else text.context // 2)
        if new + 1 > text.context:
            raise UsageError(
                f"new is {new}: answers of as many tokens leave no room for a prompt in a context "
                f"of {text.context}; write fewer, or give the task a longer context"
            )
        return Writer(text, beam, new, self.least, self.length_penalty, near)

    def _check(self, task: Task) -> None:
        """Say before anything is written or trained what would fail after it."""
        text = text_of(task)
        if text.other is not None:
            raise UsageError(
                "seqkd trains on the teacher's tokens, and this teacher has another tokenizer; "
                "give one with the student's, or a method for others: limbeck list --kind "
                "cross_tokenizer"
            )
        if self.first == "teacher" or self.inter:
            writing(task.the_teacher())
        if self.prune and task.budget.precision == "fp16":
            raise UsageError(
                "a pruned student is trained with masked gradients, which are not defined with "
                "fp16's loss scaling; use precision 'bf16', or prune=0"
            )
