"""Fair latents, distilled - a small encoder learns a fair latent space, and new rows come of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Epochs, Table, reader_of
from limbeck.core.engine import Fitted, fit
from limbeck.core.evaluate import evaluating, predict
from limbeck.core.method import Method, Objective, Result, number
from limbeck.core.objectives import Labels
from limbeck.core.run import current, rng
from limbeck.core.task import Task, build_model
from limbeck.core.teachers import Frozen, Nobody
from limbeck.errors import UsageError

from .latents import Adversary, Denoiser, Diffusion, Maker
from .learning import Distil, Teach, density_dcov
from .measures import auroc, density_coverage, f1, odds_ratio, parity_ratio
from .rows import VAE, Columns, Encoder, Sampler, drawn, groups_of

CARD = Card(
    key="fair_latent_distill",
    title="Generating Synthetic Fair Syntax-agnostic Data by Learning and Distilling Fair "
    "Representation",
    year=2024,
    arxiv="2408.10755",
    code="",
    kinds=("feature", "response", "distribution", "generative", "stagewise", "data"),
    needs=("student:logits", "y", "index"),
    gives="sampler",
    world="protected",
    stages=("teacher", "encoder", "latents", "classifier"),
    tiny={"latents": "lsgan"},
    departs="There is no official code. The teacher and its settings are those of FairDisCo as the "
    "same authors' library FairX has it; the form of the quality loss, what the utility loss acts "
    "on, and their weights are read from a summary. FairX leaves the label out of the table; here "
    "it is a column of it, as made data need one. Told a row's attribute, the decoder gives the "
    "data's bias back to the label; with `apart`, which is not the paper's, the label's attribute "
    "is drawn apart from the row's: in the world `protected` that moves the parity, and beta moves "
    "it little. Columns of many "
    "values are cut into stretches that are about equally full. Log-variances are kept within "
    "-6 and 6. Fits take the run's epochs and batch size, not 1000 epochs of 2048 rows. "
    "Encoders are compared by their parameters, not by running time.",
    lacks=("pictures: the convolutional teacher, and its binary cross-entropy",),
)
EXEMPT = {
    "accumulate": "the distance covariance relates the rows of a micro-batch; it sees no others"
}


@dataclass(frozen=True)
class FairLatentDistill(Method):
    """A small encoder learns the latents of a fair VAE, whose decoder makes new rows of them.

    The teacher, on the table of x and y in categories, without the sensitive column s:
    recon * sum_c CE_c + prior * KL(q(z | x, s) || N(0, 1)) + beta * V^2(z, s), z of `latent`
    numbers, V^2 a distance covariance (`dcov`): "density", in closed form, or "sample", Szekely's,
    for which beta is 1 to 10.
    The student's encoder, against the teacher's (m_T, v_T):
    quality * |z_S - z_T|^2 + utility * KL(N(m_T, v_T) || N(m_S, v_S)) + fair * V^2(z_S, s).
    `match`: z are the means, or "draws" with one noise for both.
    New rows: latents, an attribute drawn independently, and the teacher's decoder. `latents` are
    those of training rows, or come from a generator fitted on them: "lsgan" or "wgan_gp" (terms
    `judge`, `penalty` and `fool`), or "ddpm" (`denoise`, in `diffusion` steps).

    The task's student is then trained on `samples` made rows (0: as many as train has), and the
    report says how fair and useful it is on real ones; `compare` adds students of real rows and of
    the teacher's own latents. The class `favoured` is the one that is granted to people.

    Trained: in turn the teacher (encoder and decoder, `hidden` units), an encoder of `narrow`
    units, a generator of latents, the student. Frozen: each once it is trained. The task's own
    teacher is not asked.
    Raises: UsageError for x that is no table (N, F), or a sensitive column without groups.
    Source: Sikder et al., arXiv 2408.10755; Liu et al., KDD 2022 (FairDisCo) for the teacher: 64
    units, 8 latents, beta 10^7, Adam at 1e-3; ranges of categories as the authors' FairX.
    Relatives: `kd` of a classifier teaches the bias along.

    Example:
        >>> import torch
        >>> two = torch.tensor([[0.0, -0.6931472], [1.0, -0.6931472]])
        >>> round(float(density_dcov(two, torch.tensor([0, 1]))), 5)
        0.03924
    """

    sensitive: int = -1  # the number of the sensitive column of x; -1 is the last
    bins: int = number(8, least=2)  # categories of a column, at most
    latent: int = number(8, least=1)
    hidden: int = number(64, least=1)
    narrow: int = number(16, least=1)
    rate: float = number(1e-3, above=0)  # of Adam, for both encoders
    recon: float = number(1.0, least=0)
    prior: float = number(1.0, least=0)
    beta: float = number(1e7, least=0)
    dcov: Literal["density", "sample"] = "density"
    quality: float = number(1.0, least=0)
    utility: float = number(1.0, least=0)
    fair: float = number(0.0, least=0)
    match: Literal["means", "draws"] = "means"
    apart: bool = False  # the label's attribute is drawn apart from the row's
    latents: Literal["rows", "lsgan", "wgan_gp", "ddpm"] = "rows"
    judge: float = number(1.0, above=0)
    fool: float = number(1.0, above=0)
    penalty: float = number(10.0, least=0)
    denoise: float = number(1.0, above=0)
    diffusion: int = number(100, least=2)
    samples: int = number(0, least=0)
    favoured: int = number(1, least=0)
    compare: bool = False
    card = CARD

    def run(self, task: Task) -> Result:
        """The teacher, the student's encoder, latents, rows, and a classifier of them."""
        x, y = self._table(task)
        place = range(x.shape[1])[self.sensitive]
        groups = own, s = groups_of(x[:, place], self.bins)
        table = torch.cat((x[:, :place], x[:, place + 1 :], y[:, None].to(x)), 1)
        columns, seed = Columns(table, self.bins), current().seed
        batches = Epochs((columns.codes(table), s))
        bare = replace(task, taps={}, readers={}, valid=None)

        sizes = columns.widths, len(own)
        vae = build_model(lambda: VAE(*sizes, self.hidden, self.latent), seed, "teacher")
        small = build_model(lambda: Encoder(*sizes, self.narrow, self.latent), seed, "encoder")
        assert isinstance(vae, VAE)
        teach = Teach(
            tuple(columns.widths),
            self.latent,
            *(self.recon, self.prior, self.beta),
            self.dcov,
            self.rate,
        )
        fits = [fit(teach, vae, Nobody(), batches, name="teacher", task=bare)]
        weights = self.quality, self.utility, self.fair
        distil = Distil(*weights, self.match, self.dcov, self.rate)
        teacher = Frozen(vae.encoder)
        fits.append(fit(distil, small, teacher, batches, name="encoder", task=bare))

        def sampler(encoder: nn.Module, end: str) -> Sampler:
            posteriors = _posteriors(encoder, batches.table)
            made = self._latents(posteriors, bare, end)
            fits.extend(made)
            latents = made[0].student.cpu().eval() if made else None
            arms = vae.cpu(), encoder.cpu(), columns, posteriors, groups
            return Sampler(*arms, place, self.apart, latents).eval()

        draw = sampler(small, "")
        rows = _split(draw(self.samples or len(x), rng("rows")))
        model, report = self._taught(task, rows, fits, "")
        if self.compare:
            other = sampler(vae.encoder, "/teacher")(self.samples or len(x), rng("rows"))
            for name, given in (("teacher", _split(other)), ("real", {"x": x, "y": y})):
                _, found = self._taught(task, given, fits, f"/{name}")
                report |= {f"{name}_{k}": v for k, v in found.items()}
        report["encoder_parameters"] = sum(p.numel() for p in small.parameters())
        report["teacher_encoder_parameters"] = sum(p.numel() for p in vae.encoder.parameters())
        log = [row for each in fits for row in each.log]
        return Result(model=model, data=rows, sampler=draw, report=report, log=log)

    def _table(self, task: Task) -> tuple[Tensor, Tensor]:
        """All rows x (N, F) of train, and their labels (N,)."""
        table = Table(task.set("train"))
        batch = table.rows(torch.arange(len(table)))
        x = batch.x
        if not isinstance(x, Tensor) or x.dim() != 2:
            told = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"fair_latent_distill takes a table (N, F), but x is {told}")
        if not -x.shape[1] <= self.sensitive < x.shape[1] or x.shape[1] < 2:
            raise UsageError(
                f"sensitive is {self.sensitive}, but x has {x.shape[1]} columns; give a column's "
                "number, and a table of two columns or more"
            )
        return x.float(), batch.y.long()

    def _latents(self, posteriors: Tensor, task: Task, end: str) -> list[Fitted]:
        """A generator of latents, fitted on one draw from each row's posterior; none for "rows"."""
        if self.latents == "rows":
            return []
        noise = torch.randn(len(posteriors), self.latent, generator=rng(f"latents{end}"))
        batches, seed = Epochs(drawn(posteriors, noise)), current().seed
        objective: Objective
        if self.latents == "ddpm":
            maker = build_model(lambda: Denoiser(self.latent, self.diffusion), seed, "latents")
            objective = Diffusion(self.diffusion, self.denoise)
        else:
            maker = build_model(lambda: Maker(self.latent), seed, "latents")
            objective = Adversary(self.latents == "wgan_gp", self.judge, self.fool, self.penalty)
        return [fit(objective, maker, Nobody(), batches, name=f"latents{end}", task=task)]

    def _taught(
        self, task: Task, rows: dict[str, Tensor], fits: list[Fitted], end: str
    ) -> tuple[nn.Module, dict[str, float]]:
        """The task's student, trained on rows, and how it does on those that are judged."""
        learner, plain = current().student(task), replace(task, taps={})
        batches = Epochs((rows["x"], rows["y"]))
        fits.append(fit(Labels(), learner, Nobody(), batches, name=f"classifier{end}", task=plain))
        if task.set_or_none(task.judged) is None:
            return learner, {}
        table = Table(task.set(task.judged), task.judged)
        with evaluating(learner):
            reader = reader_of(task.readers, "student")
            logits, y = predict(learner, table, reader, current().device)
        x = table.rows(torch.arange(len(table))).x.float()
        s, score = x[:, self.sensitive], logits.softmax(1)[:, self.favoured]
        chosen, true = logits.argmax(1) == self.favoured, y == self.favoured
        scale, some = x.std(0).clamp_min(1e-6), slice(2000)
        density, coverage = density_coverage(x[some] / scale, rows["x"][some] / scale)
        return learner, {
            "parity_ratio": parity_ratio(chosen, s),
            "odds_ratio": odds_ratio(chosen, true, s),
            "accuracy": float((logits.argmax(1) == y).double().mean()),
            "f1": f1(chosen, true),
            "auroc": auroc(score, true),
            "density": density,
            "coverage": coverage,
        }


def _posteriors(encoder: nn.Module, table: Table) -> Tensor:
    """What an encoder says of all rows, on the CPU."""
    device = current().device
    encoder.to(device)
    with evaluating(encoder):
        found = [encoder(b.x.to(device), b.y.to(device)).cpu() for b in table.chunks(1024)]
    return torch.cat(found)


def _split(rows: Tensor) -> dict[str, Tensor]:
    """Rows (n, F + 1) as a table: the label is the last column."""
    return {"x": rows[:, :-1].contiguous(), "y": rows[:, -1].long()}
