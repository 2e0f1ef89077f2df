"""Audio-visual emotion: its losses, the augmentation, the fusion, and what each stage trains."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts
from limbeck.core.passes import Passes
from limbeck.core.rng import Draws
from limbeck.core.run import Run
from limbeck.core.score import ccc, concordance
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import Missing, UsageError
from limbeck.multimodal.av_emotion_kd import AVEmotionKD
from limbeck.multimodal.av_emotion_kd.losses import (
    balanced_loss,
    ccc_loss,
    class_weights,
    distil_loss,
    triplet_loss,
)
from limbeck.multimodal.av_emotion_kd.networks import Expressions, Fusion, augmented, smoothed
from limbeck.multimodal.av_emotion_kd.stages import Visual

pytestmark = pytest.mark.xdist_group("av_emotion_kd")


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_ccc(x: list[float], y: list[float]) -> float:
    n, mx, my = len(x), sum(x) / len(x), sum(y) / len(y)
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / n
    vx, vy = sum((a - mx) ** 2 for a in x) / n, sum((b - my) ** 2 for b in y) / n
    return 2 * cov / (vx + vy + (mx - my) ** 2)


# --- the losses ----------------------------------------------------------------------------------


def test_concordance_by_hand() -> None:
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    assert float(concordance(x, y)) == pytest.approx(4 / 7, abs=1e-6)
    assert float(concordance(x, x)) == pytest.approx(1.0, abs=1e-6)
    assert float(concordance(x, torch.ones(3, 1))) == 0.0
    assert float(concordance(x, -x + 2)) == pytest.approx(-1.0, abs=1e-6)


def test_a_constant_answer_has_a_finite_gradient() -> None:
    p = torch.zeros(5, 2).requires_grad_()
    assert bool(torch.autograd.grad(ccc_loss(p, torch.zeros(5, 2)), p)[0].isfinite().all())


def test_the_loss_and_the_score_are_over_all_sequences_in_a_row() -> None:
    p, y = rand(3, 5, 2), rand(3, 5, 2, seed=1)
    each = [slow_ccc(p[..., d].flatten().tolist(), y[..., d].flatten().tolist()) for d in (0, 1)]
    assert float(ccc_loss(p, y)) == pytest.approx(1 - sum(each) / 2, rel=1e-5)
    assert ccc.of is not None
    assert ccc.of(p, y) == pytest.approx(sum(each) / 2, rel=1e-5)
    assert ccc.of(p[..., 0], y[..., 0]) == pytest.approx(each[0], rel=1e-5)
    windows = [slow_ccc(p[i, :, 0].tolist(), y[i, :, 0].tolist()) for i in range(3)]
    assert abs(sum(windows) / 3 - each[0]) > 1e-3  # or this shows nothing


def test_triplets() -> None:
    e, m = rand(6, 3, 4), torch.tensor([0.1, 0.2] * 3)

    def gap(a: Tensor, b: Tensor) -> float:
        return sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True))

    wanted = sum(
        max(0, gap(e[b, 0], e[b, 1]) - gap(e[b, i], e[b, 2]) + float(m[b]))
        for b in range(6)
        for i in (0, 1)
    )
    assert float(triplet_loss(e, m)) == pytest.approx(wanted / 6, rel=1e-4)
    alike = torch.ones(6, 3, 4)
    assert float(triplet_loss(alike, m)) == pytest.approx(2 * 0.15, rel=1e-5)
    far = torch.tensor([[[0.0], [0.1], [1.0]]])  # 0.01 + m <= 0.81
    assert float(triplet_loss(far, torch.tensor([0.79]))) == 0.0
    assert float(triplet_loss(far, torch.tensor([0.82]))) == pytest.approx(0.02, rel=1e-3)


def test_every_class_counts_alike() -> None:
    y = torch.tensor([0, 0, 0, 1, 3, 3])
    w = class_weights(y, 4)
    torch.testing.assert_close(w, torch.tensor([6 / 12, 6 / 4, 0.0, 6 / 8]))
    torch.testing.assert_close(class_weights(None, 3), torch.ones(3))
    z = rand(6, 4)
    wanted = sum(float(w[c]) * -math.log(float(z[b].softmax(0)[c])) for b, c in enumerate(y)) / 6
    assert float(balanced_loss(z, y, w)) == pytest.approx(wanted, rel=1e-4)
    shares = [float((w[y] * (y == c)).sum()) for c in (0, 1, 3)]
    assert shares == pytest.approx([1.5] * 3)


def test_distillation() -> None:
    e, f = (nn.functional.normalize(rand(6, 4, seed=i)) for i in (0, 1))
    z, c = rand(6, 3, seed=2), rand(6, 3, seed=3)
    for b in range(6):
        gap = sum((float(u) - float(v)) ** 2 for u, v in zip(e[b], f[b], strict=True))
        p, q = (c[b] / 2).softmax(0).tolist(), (z[b] / 2).softmax(0).tolist()
        soft = 4 * sum(u * math.log(u / v) for u, v in zip(p, q, strict=True))
        for match, wanted in (("both", gap + soft), ("embedding", gap), ("logits", soft)):
            assert float(distil_loss(e, f, z, c, 2.0, match)[b]) == pytest.approx(wanted, rel=1e-4)
    assert float(distil_loss(e, e, z, z).abs().max()) == 0.0
    turn = torch.linalg.qr(rand(4, 4, seed=4))[0]
    pulled = distil_loss(e, f, z, c, match="embedding")
    torch.testing.assert_close(distil_loss(e @ turn, f @ turn, z, c, match="embedding"), pulled)
    assert float(distil_loss(e, -e, z, z).max()) == pytest.approx(4.0, rel=1e-5)


# --- the augmentation ----------------------------------------------------------------------------


def rng(name: str, index: Tensor) -> Draws:
    return Draws(index, "here", name)


def changed(x: Tensor, index: Tensor, **on: Any) -> Tensor:
    off = {"flip": False, "move": 0, "light": 0.0, "erase": 0.0}
    return augmented(x, rng, index, SimpleNamespace(**{**off, **on}))


def test_without_settings_faces_stay_as_they_are() -> None:
    x = rand(5, 1, 8, 8)
    assert torch.equal(changed(x, torch.arange(5)), x)


def test_each_change_by_its_own_draws() -> None:
    x, index = rand(40, 2, 8, 8), torch.arange(40)
    u = rng("augmentation", index).rand(6)
    flipped, moved = changed(x, index, flip=True), changed(x, index, move=2)
    lit, erased = changed(x, index, light=0.3), changed(x, index, erase=0.25)
    turned = [torch.equal(flipped[b], x[b].flip(2)) for b in range(40)]
    assert turned == (u[:, 0] < 0.5).tolist()
    assert 10 < sum(turned) < 30
    steps = set()
    for b in range(40):
        down, right = (int(float(u[b, i]) * 5) - 2 for i in (1, 2))
        steps |= {down, right}
        for i in range(8):
            for j in range(8):
                at = min(max(i - down, 0), 7), min(max(j - right, 0), 7)
                assert torch.equal(moved[b, :, i, j], x[b, :, at[0], at[1]])
        torch.testing.assert_close(lit[b], x[b] * (1 + 0.3 * (2 * u[b, 3] - 1)))
        gone = (erased[b] != x[b]).all(0)
        assert int(gone.sum()) == 4  # two by two
        assert gone.any(0).sum() == 2
        torch.testing.assert_close(erased[b][:, gone], x[b].mean().expand(2, 4))
    assert steps == {-2, -1, 0, 1, 2}


def test_a_face_is_changed_alike_wherever_it_stands_in_a_batch() -> None:
    x, index = rand(6, 1, 8, 8), torch.arange(6)
    on = {"flip": True, "move": 2, "light": 0.3, "erase": 0.25}
    assert torch.equal(changed(x, index, **on).flip(0), changed(x.flip(0), index.flip(0), **on))


# --- the fusion ----------------------------------------------------------------------------------


def extractor(size: int, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU())


def fusion(outputs: int = 2, **more: Any) -> Fusion:
    torch.manual_seed(0)
    face = Expressions(extractor(16), 6, 4, 3)
    given: dict[str, Any] = {"delay": 0, "smooth": 1, **more}
    return Fusion(face, extractor(10), ("face", "sound"), 10, 8, 1, outputs, **given)


def given(n: int = 3, length: int = 7) -> dict[str, Tensor]:
    return {"face": rand(n, length, 1, 4, 4), "sound": rand(n, length, 10, seed=1)}


def test_features_are_joined_step_by_step() -> None:
    made, x = fusion().eval(), given()
    rows = []
    for t in range(7):
        e = nn.functional.normalize(made.face.project(made.face.extractor(x["face"][:, t])))
        rows.append(torch.cat((e, made.sound(x["sound"][:, t])), 1))
    torch.testing.assert_close(e.norm(dim=1), torch.ones(3))
    wanted = made.head(made.lstm(torch.stack(rows, 1))[0])
    torch.testing.assert_close(made(**x), wanted)
    one = fusion(0).eval()(**x)
    assert one.shape == (3, 7)


def test_answers_come_later_by_the_delay() -> None:
    x = given()
    plain, late = fusion().eval()(**x), fusion(delay=2).eval()(**x)
    torch.testing.assert_close(late[:, 2:], plain[:, :-2])
    torch.testing.assert_close(late[:, :2], plain[:, :1].expand(-1, 2, -1))
    assert fusion(delay=9).eval()(**x).shape == plain.shape


def test_smoothing_is_the_mean_of_what_is_there() -> None:
    v = rand(2, 6, 2)
    for t in range(6):
        around = v[:, max(0, t - 1) : t + 2].mean(1)
        torch.testing.assert_close(smoothed(v, 3)[:, t], around)
    assert torch.equal(smoothed(v, 1), v)
    made, x = fusion(smooth=3), given()
    torch.testing.assert_close(made.eval()(**x), smoothed(made.train()(**x), 3))


def test_extractors_stay_frozen_and_in_eval_mode() -> None:
    made = fusion().train()
    assert made.lstm.training
    assert not any(m.training for part in (made.face, made.sound) for m in part.modules())
    assert {n.split(".")[0] for n, p in made.named_parameters() if p.requires_grad} == {
        *("lstm", "head")
    }


# --- the stages ----------------------------------------------------------------------------------


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.face, self.sound = extractor(16), extractor(10)
        self.head = nn.Linear(12, 2)

    def forward(self, face: Tensor, sound: Tensor) -> Tensor:
        joined = self.face(face.flatten(0, 1)), self.sound(sound.flatten(0, 1))
        return self.head(torch.cat(joined, 1)).unflatten(0, face.shape[:2])


def task(**changes: Any) -> Task:
    x = given(16)
    y = torch.stack((x["face"].mean((2, 3, 4)), x["sound"].mean(2)), 2)
    made = Task(
        teacher=None,
        student=Student,
        train={"x": x, "y": y},
        valid={"x": x, "y": y},
        test={"x": x, "y": y},
        score=ccc,
        budget=Budget(steps=3, batch=8, optimiser=Optimiser("adam", lr=1e-2)),
        data={
            "expressions": {
                "x": rand(16, 1, 4, 4, seed=2),
                "y": torch.arange(16) % 3,
                "affect": rand(16, 2, seed=3),
            },
            "triplets": {
                "x": rand(16, 3, 1, 4, 4, seed=4),
                "one_class": torch.arange(16) % 2 == 0,
            },
            "unlabelled": rand(20, 1, 4, 4, seed=5),
        },
    )
    return replace(made, **changes)


def fits(method: AVEmotionKD, on: Task) -> tuple[list[Passes], Any, list[dict[str, Tensor]]]:
    seen: list[Passes] = []
    before: list[dict[str, Tensor]] = []

    def begin(passes: Passes) -> None:
        seen.append(passes)
        before.append({n: v.clone() for n, v in passes.step.state_dict().items()})

    with Run(on, 3, device="cpu", on_fit=begin):
        result = method.run(on)
    return seen, result, before


def test_terms_of_faces_are_means_each_over_its_own_batch() -> None:
    method = AVEmotionKD(kd=0.5, affect=2.0)
    triplets = Batch(
        x=rand(4, 3, 1, 4, 4), one_class=torch.tensor([True, False] * 2), index=torch.arange(4)
    )
    pool = Batch(x=rand(6, 1, 4, 4), index=torch.arange(6))
    batch = Batch(
        x=rand(5, 1, 4, 4), y=torch.arange(5) % 3, affect=rand(5, 2), index=torch.arange(5),
        triplets=triplets, unlabelled=pool,
    )  # fmt: skip
    e, f = (nn.functional.normalize(rand(23, 4, seed=i)) for i in (0, 1))
    z, c = rand(23, 3, seed=2), rand(23, 3, seed=3)
    s, t = SimpleNamespace(embedding=e, logits=z), SimpleNamespace(embedding=f, logits=c)
    objective = Visual(method, True)
    torch.manual_seed(0)
    parts = objective.build(s, t, batch, Facts(5, 3, 10, 1, batch.y))
    found = objective.terms(parts, s, t, batch, Clock(0, "fit", 0, 10, 1))
    each = distil_loss(e, f, z, c).tolist()
    means = [sum(rows) / len(rows) for rows in (each[:5], each[5:17], each[17:])]
    assert float(found["kd"]) == pytest.approx(0.5 * sum(means) / 3, rel=1e-5)
    margins = torch.tensor([0.1, 0.2, 0.1, 0.2])
    assert float(found["triplet"]) == pytest.approx(
        float(triplet_loss(e[5:17].view(4, 3, 4), margins)), rel=1e-5
    )
    weights = torch.tensor([5 / 6, 5 / 6, 5 / 3])
    assert float(found["label"]) == pytest.approx(
        float(balanced_loss(z[:5], batch.y, weights)), rel=1e-5
    )
    said = parts.affect(e[:5])
    assert float(found["affect"].detach()) == pytest.approx(
        2 * float(ccc_loss(said, batch.affect).detach()), rel=1e-5
    )
    plain = Visual(replace(method, affect=0.0), False)
    assert set(plain.terms(parts, s, t, batch, Clock(0, "fit", 0, 10, 1))) == {"triplet", "label"}


def test_the_student_sees_changed_faces_and_its_teacher_the_faces() -> None:
    on = task()
    sets = {n: Batch(index=torch.arange(4), **_columns(on.data[n])) for n in on.data}
    batch = sets["expressions"].replace(triplets=sets["triplets"], unlabelled=sets["unlabelled"])
    for_student, for_teacher = Visual(AVEmotionKD(), True).prepare(batch, rng)
    rows = [on.data["expressions"]["x"][:4], on.data["triplets"]["x"][:4].flatten(0, 1)]
    plain = torch.cat([*rows, on.data["unlabelled"][:4]])
    assert torch.equal(for_teacher.x, plain)
    assert all(not torch.equal(a, b) for a, b in zip(for_student.x, plain, strict=True))
    off = AVEmotionKD(flip=False, move=0, light=0.0, erase=0.0)
    assert torch.equal(Visual(off, True).prepare(batch, rng)[0].x, plain)
    assert torch.equal(Visual(AVEmotionKD(), False).prepare(batch, rng)[0].x, plain[:16])


def _columns(source: Any) -> dict[str, Tensor]:
    return {k: v[:4] for k, v in (source if isinstance(source, dict) else {"x": source}).items()}


def test_each_stage_trains_its_own_and_the_last_no_extractor() -> None:
    seen, result, before = fits(AVEmotionKD(hidden=4, dim=4), task())
    assert [s.stage for s in seen] == ["teacher", "visual/1", "audio", "fusion"]
    teacher, visual, audio, last = seen
    after = [s.step.state_dict() for s in seen]
    moved = [
        {n for n, v in b.items() if not torch.equal(v, a[n])}
        for b, a in zip(before, after, strict=True)
    ]
    assert all(n.startswith("student.") for names in moved for n in names)
    assert {n.split(".")[1] for n in moved[3]} == {"lstm", "head"}
    assert last.student.face is visual.student
    assert last.student.sound is audio.student.extractor
    assert visual.teacher.module is teacher.student
    assert not torch.equal(before[0]["student.project.weight"], before[1]["student.project.weight"])
    assert result.model is last.student
    assert not any(m.training for m in result.model.modules())


def test_the_students_own_extractors_are_the_last_generation() -> None:
    on = task()
    seen, _, before = fits(AVEmotionKD(hidden=4, dim=4, generations=2), on)
    assert [s.stage for s in seen][:3] == ["teacher", "visual/1", "visual/2"]
    own = on.new_student(3)
    assert torch.equal(before[2]["student.extractor.1.weight"], own.face[1].weight)
    assert not torch.equal(before[1]["student.extractor.1.weight"], own.face[1].weight)
    assert torch.equal(before[3]["student.extractor.1.weight"], own.sound[1].weight)
    assert seen[2].teacher.module is seen[1].student


def test_without_distillation_and_without_tuning() -> None:
    on = task()
    seen, result, _ = fits(AVEmotionKD(hidden=4, dim=4, generations=0, audio=0.0), on)
    assert [s.stage for s in seen] == ["teacher", "fusion"]
    assert torch.equal(result.model.sound[1].weight, on.new_student(3).sound[1].weight)


def test_correction_gives_the_mean_and_deviation_of_valid() -> None:
    on = task()
    _, result, _ = fits(AVEmotionKD(hidden=4, dim=4, correct=True), on)
    with torch.no_grad():
        p = result.model(**on.valid["x"]).view(-1, 2)
    y = on.valid["y"].view(-1, 2)
    torch.testing.assert_close(p.mean(0), y.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p.std(0), y.std(0), rtol=1e-4, atol=1e-4)


def test_one_thing_to_follow() -> None:
    on = task()
    sets = {"x": on.train["x"], "y": on.train["y"][..., 0]}
    _, result, _ = fits(
        AVEmotionKD(hidden=4, dim=4), replace(on, train=sets, valid=sets, test=sets)
    )
    assert result.model(**on.train["x"]).shape == (16, 7)


def test_sentences() -> None:
    on = task()
    fewer = {n: v for n, v in on.data.items() if n != "triplets"}
    with pytest.raises(Missing, match="the task lacks triplets"):
        fits(AVEmotionKD(), replace(on, data=fewer))
    bare = {**on.data, "expressions": on.data["expressions"]["x"]}
    with pytest.raises(UsageError, match="needs y, one class number for each face"):
        fits(AVEmotionKD(), replace(on, data=bare))
    with pytest.raises(UsageError, match="smooth is 2; give an odd number"):
        fits(AVEmotionKD(smooth=2), on)
    with pytest.raises(UsageError, match="fits on valid, and there is none"):
        fits(AVEmotionKD(correct=True), replace(on, valid=None))
    with pytest.raises(Missing, match="no module 'voice'"):
        fits(AVEmotionKD(sound="voice"), on)
