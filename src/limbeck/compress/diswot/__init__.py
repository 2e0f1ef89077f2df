"""DisWOT - the student that is most like the teacher before either has learnt anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts, Method, Objective, Result, number
from limbeck.core.objectives import Sum
from limbeck.core.run import rng
from limbeck.core.task import Task
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.registry import make

from .distances import channel_distance, relation_distance
from .pool import Pool
from .search import evolve

CARD = Card(
    key="diswot",
    title="DisWOT: Student Architecture Search for Distillation WithOut Training",
    year=2023,
    arxiv="2303.15678",
    code="https://github.com/lliai/DisWOT-CVPR2023",
    kinds=("search", "relation", "feature", "gradient"),
    needs=("feature", "embedding", "logits", "y", "teacher_weights", "data:space"),
    gives="scores",
    world="digits",
    stages=("score", "fit"),
    tiny={"inits": 1, "images": 32},
    departs="Scores are means over four draws of weights and images, not of one. Any weight with "
    "two or more dimensions is drawn as the paper's convolutions and linear layers are. Widths "
    "that differ from the teacher's are compared by classes (not in the paper), then all are. A "
    "space no larger than an evolution's cost is scored whole. The evolution's parent is the best "
    "of its tournament (the code draws it from the lower end of it); a candidate that is met again "
    "keeps its score; the budget holds for children too; and the winner is the best score (the "
    "code picks among the best five by their test accuracy). How the paper weighs the two "
    "distances, in the score and as losses, is not known to us.",
)


@dataclass(frozen=True)
class Likeness(Objective):
    """The two distances as losses between trained networks; a linear map fits other widths."""

    semantic_loss: float
    relation_loss: float

    def asks(self) -> tuple[str, ...]:
        return ("feature",)

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        here, there = s.feature.shape[1], t.feature.shape[1]
        if not self.semantic_loss or here == there:
            return nn.Identity()
        return nn.Linear(here, there, bias=False)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        f_s, f_t, out = s.feature.float(), t.feature.float(), {}
        if self.semantic_loss:
            fitted = parts(f_s.movedim(1, -1)).movedim(-1, 1)
            out["semantic_loss"] = self.semantic_loss * channel_distance(fitted.float(), f_t)
        if self.relation_loss:
            out["relation_loss"] = self.relation_loss * relation_distance(f_s, f_t)
        return out


@dataclass(frozen=True)
class DisWOT(Method):
    """Untrained students are scored by how alike they and the teacher's architecture respond.

    Both get random weights and see a batch: score = -(semantic * D_sem + relation * D_rel), the
    mean over `inits` draws of weights and `images`. D_sem compares the gradient of the classifier's
    weight channel by channel (`channel_distance`), or class by class (`class_distance`) once a
    width differs from the teacher's; D_rel the relations of samples in the last feature map. Both
    compare rows of length 1, but D_rel has one more division by the batch: D_sem is of order 1,
    D_rel of 1 / `images`, so that at equal weights D_sem decides.

    Candidates are `task.data["space"]`, name -> factory; all have the student's taps. At most
    `population + cycles` of them are all scored; of more, `evolve` chooses. Names are choices
    parted by "-". Those with more than `parameters` weights or `flops` (two for a multiply-add, one
    sample) are left out; 0 is no limit. The winner is then taught by the method `of` (`train`), to
    which the two distances can be added, with the weights `semantic_loss` and `relation_loss`.

    Trained: the winner only. Frozen: the teacher, whose weights the score does not see.
    Raises: UsageError for an empty space, a teacher that is no module, or class counts that differ;
    NonFinite, naming the candidate, for a score that is not finite.

    Source: Dong, Li and Wei, CVPR 2023, arXiv 2303.15678, section 3; population and tournament from
    the authors' code, `cycles` from its unused default.
    Relatives: `takd` bridges a gap that this avoids; `random_teacher` learns from random weights.

    Example:
        >>> import torch
        >>> g = torch.tensor([[3.0, -4.0]])
        >>> float(channel_distance(g, g)), float(relation_distance(g, g))
        (0.0, 0.0)
    """

    semantic: float = number(1.0, least=0)
    relation: float = number(1.0, least=0)
    inits: int = number(4, least=1)
    images: int = number(64, least=2)
    population: int = number(36, least=1)
    cycles: int = number(1000, least=0)
    tournament: int = number(8, least=1)
    parameters: int = number(0, least=0)
    flops: int = number(0, least=0)
    train: bool = True
    of: str = "kd"
    semantic_loss: float = number(0.0, least=0)
    relation_loss: float = number(0.0, least=0)
    card = CARD

    def asks(self) -> tuple[str, ...]:
        return (*CARD.needs, *(make(self.of).asks() if self.train else ()))

    def run(self, task: Task) -> Result:
        """Score the space; then teach the winner."""
        space = task.set("space")
        if not isinstance(space, Mapping) or not space:
            raise UsageError("diswot needs a space with candidates; give {name: factory}")
        pool = Pool(self, task, space)
        names = sorted(space)
        if len(names) <= self.population + self.cycles:
            for name in filter(pool.allowed, names):
                pool.score(name)
        else:
            size = self.population, self.cycles, self.tournament
            evolve(names, pool.score, pool.allowed, *size, rng)
        if not pool.rows:
            raise UsageError("no candidate of the space is within the budget; raise it")
        scores = {name: pool.score(name) for name in sorted(pool.rows)}
        result = Result(scores=scores, log=pool.log)
        if self.train:
            winner = max(sorted(scores), key=lambda n: scores[n])
            teach = make(self.of)
            if self.semantic_loss or self.relation_loss:
                if not isinstance(teach, Objective):
                    raise UsageError(f"'{self.of}' is no single objective; no loss can be added")
                more = Likeness(self.semantic_loss, self.relation_loss)
                teach = Sum(((teach.card.key, 1.0, teach), ("likeness", 1.0, more)))
            taught = teach.run(replace(task, teacher=task.the_teacher(), student=space[winner]))
            result = replace(result, model=taught.model, log=result.log + taught.log)
        return result
