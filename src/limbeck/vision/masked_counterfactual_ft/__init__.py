"""Masked counterfactuals - fine-tuning that keeps the features of pictures with swapped patches."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Table, reader_of
from limbeck.core.engine import fit
from limbeck.core.evaluate import measure
from limbeck.core.method import Clock, Facts, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.views import Side
from limbeck.errors import UsageError

from .filling import ZeroShot, averaged, hidden, refill, several, single
from .relevance import Attentions, attention_relevance, grad_cam, normalised, square

CARD = Card(
    key="masked_counterfactual_ft",
    title="Masked Images Are Counterfactual Samples for Robust Fine-tuning",
    year=2023,
    arxiv="2303.03052",
    code="https://github.com/Coxy7/robust-finetuning",
    kinds=("feature", "masking", "attention", "regulariser", "domain"),
    needs=("student:logits", "student:feature", "embedding", "y", "index", "again", "weights"),
    gives="model",
    world="biased",
    stages=("fit",),
    tiny={"wise": 0.5},
    departs="The relevance is taken from the pass that the labels' term has, in train mode; the "
    "code looks once more, in eval mode, which is the same for networks without dropout and batch "
    "norm. Pictures are filled from the next one in a random cycle of the micro-batch, so never "
    "from themselves, as the code's permutation may. Without a refill masked patches are hidden "
    "from attention, also at random, where the code drops them; the class token sees no "
    "difference. The head of a zero-shot model has a bias. The recipe is the run's.",
)


class Start(nn.Module):
    """The weights that the student begins with, by name with '/' for '.'."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, tensor in model.state_dict().items():
            self.register_buffer(name.replace(".", "/"), tensor.clone(), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        """The names and tensors of a state."""
        return {name.replace("/", "."): tensor for name, tensor in self.named_buffers()}


@dataclass(frozen=True)
class MaskedCounterfactualFT(Objective):
    """A pre-trained student learns labels, and keeps its features on pictures of swapped patches.

    label * CE(y, s(x)) + distil * mean (f_s(x') - f_t(x'))^2, f the `embedding`, as it comes.
    x' is x with some patches masked and refilled. `mask`: "object", those whose relevance for the
    label is above `threshold` of the picture's largest; "context", the others; "random", each with
    probability `share`; "none", x' = x. `fill`: "single", all from one other picture of the batch
    at the same place; "multi", each from one of its own; "none", no token looks at them.
    `relevance`: "attention", gradient times attention through all layers; "gradcam", of the tap
    `feature`; "auto", attention where the student has it.

    The student begins with the teacher's weights. `wise` below 1 delivers that share of the way
    from there to what was learnt (WiSE-FT, 0.5). The task's data "prompts", text embeddings
    (classes, prompts, D), make an image tower a zero-shot model with `scale`; with its "shifts",
    {name: (x, y)}, the report has the score of each.

    Trained: the student, its head too. Frozen: the teacher, as it was. Stopped: x' and relevance.
    Raises: UsageError for a teacher without a module, a student of another architecture, inputs
    that are no pictures, fill="none" without attention, and relevance that nothing reaches.
    Source: Xiao et al., CVPR 2023, arXiv 2303.03052, section 4; the code's best for each mask:
    threshold 0.3 for "object" ("multi": 0.6) and 0.5 for "context", share 0.5; distil = 30 is for
    the features of CLIP and follows their scale. AdamW at 3e-5, decay 0.1, 10 epochs of 512.
    Relatives: `kd` on the teacher's answers; mask="none" is plain feature distillation, distil = 0
    plain fine-tuning.

    Example:
        >>> import torch
        >>> x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 2, 2)
        >>> mask = torch.tensor([[[True, False]], [[False, False]]])
        >>> refill(x, mask, torch.tensor([1, 0]))[0, 0].tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """

    label: float = number(1.0, least=0)
    distil: float = number(30.0, least=0)
    mask: Literal["object", "context", "random", "none"] = "object"
    fill: Literal["single", "multi", "none"] = "single"
    threshold: float = number(0.3, least=0, most=1)
    share: float = number(0.5, least=0, most=1)
    relevance: Literal["auto", "attention", "gradcam"] = "auto"
    wise: float = number(1.0, least=0, most=1)
    scale: float = number(100.0, above=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """One fit of the teacher's own weights."""
        module = getattr(task.the_teacher(), "module", None)
        if not isinstance(module, nn.Module):
            raise UsageError(
                "masked_counterfactual_ft fine-tunes the teacher's weights, and this teacher is "
                f"{type(task.the_teacher()).__name__}; give a module as teacher"
            )
        student, prompts = current().student(task), task.set_or_none("prompts")
        teacher = task.the_teacher()
        if prompts is not None:
            given = (copy.deepcopy(module), student)
            module, student = (ZeroShot(tower, prompts, self.scale) for tower in given)
            teacher = Frozen(module)
        try:
            student.load_state_dict(module.state_dict())
        except RuntimeError:
            raise UsageError(
                "masked_counterfactual_ft begins with the teacher's weights, which do not fit the "
                "student; give both the same architecture"
            ) from None
        fitted = fit(self, student, teacher, task.batches(), name="fit", task=task)
        model = self.deliver(fitted.student, fitted.parts)
        shifts, reader = task.set_or_none("shifts"), reader_of(task.readers, "student")
        report = {
            name: measure(model, Table(given, name), task.score, reader, current().device)
            for name, given in (shifts or {}).items()
        }
        return Result(model=model, log=fitted.log, report=report or None)

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The student's first weights, where the result is averaged with them."""
        return Start(s.model) if self.wise < 1 else nn.Module()

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        """The student, or its average with what it began as."""
        if self.wise == 1:
            return student
        made = copy.deepcopy(student)
        made.load_state_dict(averaged(parts.weights(), student.state_dict(), self.wise))
        return made

    def _cam(self, s: Side, z: Tensor, maps: list[Tensor]) -> Tensor:
        """The relevance (B, h, w) of patches for logits z (B,), in [0, 1]."""
        if self.relevance == "attention" and not maps:
            raise UsageError(
                "the student has no attention that masked_counterfactual_ft can read; give "
                "relevance='gradcam' and a tap 'feature'"
            )
        by_maps = maps and self.relevance != "gradcam"
        cam = attention_relevance(z, maps) if by_maps else grad_cam(z, s.feature)
        return square(normalised(cam)).detach()

    def _masked(self, s: Side, batch: Batch, clock: Clock, maps: list[Tensor]) -> tuple[Any, Any]:
        """X' (B, C, H, W), and the patches (B, P) that are hidden instead."""
        x = batch.x
        if not isinstance(x, Tensor) or x.dim() != 4:
            told = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(
                f"masked_counterfactual_ft masks pictures, but was given inputs {told}"
            )
        z = s.logits.gather(1, batch.y[:, None])[:, 0]
        cam = self._cam(s, z, maps)
        patches = cam[0].numel()
        if self.mask == "random":
            u = clock.rng("mask", batch.index).rand(patches).to(cam.device)
            dark = hidden(u, self.share) if self.fill == "none" else u < self.share
            mask = dark.view_as(cam)
        else:
            mask = (cam > self.threshold) ^ (self.mask == "context")
        if self.fill == "none":
            return x, mask.flatten(1)
        u = clock.rng("fill", batch.index).rand(1)[:, 0]
        if self.fill == "single" or len(x) == 1:
            return refill(x, mask, single(u)), None
        shift = 1 + clock.rng("patch", batch.index).randint(len(x) - 1, patches)
        return refill(x, mask, several(u, shift).view_as(mask)), None

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label` and `distil`."""
        out, masked = {}, bool(self.distil) and self.mask != "none"
        with Attentions() if masked else nullcontext(Attentions()) as seen:
            z: Any = s.logits if self.label or masked else None
        if self.label:
            out["label"] = self.label * F.cross_entropy(z.float(), batch.y)
        if not self.distil:
            return out
        x, dark = self._masked(s, batch, clock, seen.maps) if masked else (batch.x, None)
        if dark is not None and not seen.maps:
            raise UsageError(
                "fill='none' hides patches from attention, and the student has none; give "
                "fill='single' or 'multi'"
            )
        other = batch.replace(x=x)
        with Attentions(dark) if dark is not None else nullcontext():
            here = s(other).embedding
            there = t(other).embedding
        out["distil"] = self.distil * F.mse_loss(here.float(), there.detach().float())
        return out
