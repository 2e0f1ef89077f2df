"""Audio-visual emotion - self-distilled faces and tuned sounds, followed by an LSTM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Beside, Epochs, Table
from limbeck.core.engine import fit
from limbeck.core.evaluate import evaluating, predict
from limbeck.core.method import Method, Result, number
from limbeck.core.run import current
from limbeck.core.taps import module_at
from limbeck.core.task import Task, build_model
from limbeck.core.teachers import Frozen, Nobody
from limbeck.errors import Missing, UsageError
from limbeck.multimodal.av_emotion_kd.losses import ccc_loss
from limbeck.multimodal.av_emotion_kd.networks import Expressions, Fusion, Sounds, width_of
from limbeck.multimodal.av_emotion_kd.stages import Audio, Follow, Visual

CARD = Card(
    key="av_emotion_kd",
    title="Leveraging Recent Advances in Deep Learning for Audio-Visual Emotion Recognition",
    year=2021,
    arxiv="2103.09154",
    code="",
    kinds=("self", "feature", "response", "cross_modal", "augmentation", "stagewise"),
    needs=(
        "student:logits",
        "student:embedding",
        "y",
        "index",
        "weights",
        "data:expressions",
        "data:triplets",
        "data:unlabelled",
    ),
    gives="model",
    world="affect",
    stages=("teacher", "visual", "audio", "fusion"),
    tiny={"hidden": 8, "dim": 8},
    departs="The paper publishes no code: how self-distillation compares embeddings and logits, "
    "its weight and temperature, the embedding's size and the augmentation are reconstructions. A "
    "step takes a batch of each set, where the paper's teacher draws sets in turn. Extractors "
    "start as the student brings them: pre-training on faces and on AudioSet is the user's. One "
    "LSTM follows valence and arousal together, where y has both.",
)
EXEMPT = {
    "accumulate": "the concordance is of all steps of a micro-batch in a row: it is no mean over "
    "samples"
}
SETS = ("expressions", "triplets", "unlabelled")


@dataclass(frozen=True)
class AVEmotionKD(Method):
    """A network of faces teaches one of its kind, which with one of sounds feeds an LSTM.

    x is {face: (N, T, C, H, W), sound: (N, T, ...)} by the names in `face` and `sound`, which are
    also those of the student's modules that make vectors of a face and of a sound; y is (N, T), or
    (N, T, D). `task.data` has "expressions" (x faces, y classes, and `affect` (N, 2) for that
    term), "triplets" (x (N, 3, C, H, W), the first two more alike; `one_class` (N,)) and
    "unlabelled" faces.

    "teacher": an extractor of faces, an embedding e of length 1 with `dim` numbers, class logits
    c from e; triplet * the triplet loss at `margin` (`margin_one` for triplets of one class)
    + label * CE with classes weighted by N / (C n_c) + affect * (1 - CCC) of valence and arousal.
    "visual": the same from a fresh start, faces changed (half of them by `flip`, by up to `move`
    pixels, by up to a share `light` of their brightness, with a square of the side's share `erase`
    left out), plus
    kd * (|e_s - e_t|^2 + tau^2 KL(softmax(c_t / tau) || softmax(c_s / tau))), the mean over the
    three sets' means; `match` takes one summand alone. It teaches the next of `generations`.
    "audio": audio * the squared error of y from each sound alone; 0 leaves that extractor as it is.
    "fusion": ccc * (1 - CCC) over all steps of a batch of sequences, from e and the sound's vector
    at each step through an LSTM of `layers` layers of `hidden` units. Its answers are moved
    `delay` steps later; when it is used, they are averaged over `smooth` steps and, with
    `correct`, brought to the mean and deviation of y on valid.

    Trained: one network after the other, each with the task's budget; the last without the
    extractors. Frozen: the teacher of a generation; both extractors at the end. Delivered: both
    with the LSTM, in place of the student's own way of joining them.
    Raises: Missing for a set or a module that is not there; UsageError for an even `smooth`,
    expressions without classes, or `correct` without valid.
    Source: Schoneveld, Othmani and Abdelkawy, Pattern Recognition Letters 146, 2021, arXiv
    2103.09154, section 3; the triplet loss and its margins are Vemulapalli and Agarwala's.
    Relatives: `ban` for classifiers; `mst_distill` teaches one modality by others.

    Example:
        >>> import torch
        >>> p, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [2.0], [3.0]])
        >>> round(float(1 - ccc_loss(p, y)), 6)
        0.571429
    """

    triplet: float = number(1.0, least=0)
    label: float = number(1.0, least=0)
    affect: float = number(0.0, least=0)
    kd: float = number(1.0, least=0)
    audio: float = number(1.0, least=0)
    ccc: float = number(1.0, least=0)
    margin: float = number(0.2, least=0)
    margin_one: float = number(0.1, least=0)
    tau: float = number(2.0, above=0)
    match: Literal["both", "embedding", "logits"] = "both"
    generations: int = number(1, least=0)
    dim: int = number(32, least=1)
    flip: bool = True
    move: int = number(2, least=0)
    light: float = number(0.3, least=0)
    erase: float = number(0.25, least=0, below=1)
    hidden: int = number(64, least=1)
    layers: int = number(1, least=1)
    delay: int = number(0, least=0)
    smooth: int = number(1, least=1)
    correct: bool = False
    face: str = "face"
    sound: str = "sound"
    card = CARD

    def run(self, task: Task) -> Result:
        """The four stages."""
        if lacking := [name for name in SETS if name not in task.data]:
            raise Missing(
                f"av_emotion_kd needs the sets {', '.join(SETS)}, and the task lacks "
                f"{', '.join(lacking)}; give Task(..., data={{'{lacking[0]}': ...}})"
            )
        if self.smooth % 2 == 0:
            raise UsageError(
                f"av_emotion_kd's smooth is {self.smooth}; give an odd number of steps"
            )
        if self.correct and task.valid is None:
            raise UsageError("av_emotion_kd's correct fits on valid, and there is none; give one")
        plain = replace(task, taps={}, readers={}, budget=task.budget.unwatched())
        faces, log = self._faces(task, plain)
        sounds, more = self._sounds(task, plain)
        y = task.batches().first().y
        outputs = y.shape[2] if y.dim() == 3 else 0

        def make() -> nn.Module:
            return Fusion(
                faces, sounds.extractor, (self.face, self.sound),
                self.dim + sounds.head.in_features, self.hidden, self.layers, outputs,
                self.delay, self.smooth,
            )  # fmt: skip

        fused = build_model(make, current().seed, "fusion")
        own = replace(plain, budget=task.budget)
        last = fit(Follow(self), fused, Nobody(), task.batches(), name="fusion", task=own)
        if self.correct:
            self._correct(last.student, task)
        return Result(model=last.student.eval(), log=[*log, *more, *last.log])

    def _faces(self, task: Task, plain: Task) -> tuple[Any, list[dict[str, Any]]]:
        """The teacher of faces, and the generations after it."""
        labels = Table(task.set("expressions"), "expressions").labels()
        if labels is None or labels.is_floating_point() or labels.dim() != 1:
            raise UsageError(
                "av_emotion_kd's set 'expressions' needs y, one class number for each face, in "
                "memory; give it as {'x': faces, 'y': classes}"
            )
        classes = int(labels.max()) + 1
        sets = {name: Epochs(task.set(name), name) for name in SETS}
        x, log, teacher = sets["expressions"].first().x, list[dict[str, Any]](), None
        for k in range(self.generations + 1):
            name = f"visual/{k}" if k else "teacher"
            extractor = self._extractor(task, name, self.face)
            features = width_of(extractor, x)

            def make(extractor: nn.Module = extractor, features: int = features) -> nn.Module:
                return Expressions(extractor, features, self.dim, classes)

            student = build_model(make, current().seed, f"expressions/{name}")
            beside: dict[str, Any] = {n: sets[n] for n in SETS[1 : 3 if k else 2]}
            batches = Beside(sets["expressions"], **beside)
            teaches = Nobody() if teacher is None else Frozen(teacher)
            fitted = fit(Visual(self, k > 0), student, teaches, batches, name=name, task=plain)
            teacher, log = fitted.student, log + fitted.log
        return teacher, log

    def _sounds(self, task: Task, plain: Task) -> tuple[Any, list[dict[str, Any]]]:
        """The extractor of sounds, tuned by a head of its own."""
        first = task.batches().first()
        extractor = self._extractor(task, "audio", self.sound)
        features = width_of(extractor, first.x[self.sound].flatten(0, 1))
        outputs = first.y.shape[2] if first.y.dim() == 3 else 1
        student = build_model(
            lambda: Sounds(extractor, features, self.sound, outputs), current().seed, "sounds"
        )
        if not self.audio:
            return student, []
        fitted = fit(Audio(self), student, Nobody(), task.batches(), name="audio", task=plain)
        return fitted.student, fitted.log

    def _extractor(self, task: Task, name: str, path: str) -> nn.Module:
        """A fresh one of the student's extractors; the last generation's is the student's own."""
        own = name in (f"visual/{self.generations}", "audio")
        student = current().student(task, "student" if own else name)
        return module_at(student, path, "student").eval()

    def _correct(self, fused: Any, task: Task) -> None:
        """Bring the mean and the deviation of the answers on valid to those of y."""
        with evaluating(fused):
            p, y = predict(fused, Table(task.valid, "valid"), None, current().device)
        wide = max(1, fused.outputs)
        p, y = p.view(-1, wide), y.float().view(-1, wide)
        scale: Tensor = y.std(0) / p.std(0).clamp_min(1e-8)
        fused.scale.copy_(scale)
        fused.offset.copy_(y.mean(0) - scale * p.mean(0))
