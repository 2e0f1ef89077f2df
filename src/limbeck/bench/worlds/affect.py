"""`affect`: drawn faces and tones in sequences, whose valence and arousal are to be followed."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bench.worlds._build import whole
from limbeck.core.rng import generator
from limbeck.core.score import ccc
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import Missing

SIDE, MELS, FRAMES = 16, 16, 8
EXPRESSIONS = 8
DELAY = 2  # steps by which a voice is behind a face
_GRAIN = {"face": 0.15, "sound": 0.5}  # standard deviations of the noise


def task(
    *,
    teacher: str = "none",
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: x {"face": (N, T, 1, 16, 16), "sound": (N, T, 1, 16, 8)}, y (N, T, 2).

    y is valence and arousal, each a smooth course in (-1, 1). A mouth bends with valence and eyes
    open with arousal, in faces of any place, size and brightness; the pitch of a log-mel patch
    follows valence, its loudness arousal, 2 steps late. The score is the concordance (CCC) over all
    sequences.
    Beside them stand faces alone: `expressions` with y, one of eight sectors of the plane of
    valence and arousal, and `affect`; `triplets` (N, 3, 1, 16, 16), of which the first two are more
    alike than the third, with `one_class`; and `unlabelled`.

    Args:
        teacher: 'none': a method makes its own.
        student: 'frames', a model that looks at each step alone.
        seed: of the run; makes no difference here.
        tiny: 32 sequences of 12 steps, and 24 training steps.
        n: training sequences; 100 by default.
        data_seed: of all data.
    """
    _one_of("teacher", teacher, "none")
    _one_of("student", student or "frames", "frames")
    n = whole("n", n or (32 if tiny else 100), 16, 10_000)
    length, held, faces = (12, 16, 96) if tiny else (60, 50, 500)
    sets = [
        sequences(size, length, generator("affect", data_seed, part))
        for size, part in ((n, "train"), (held // 2, "valid"), (held, "test"))
    ]
    rng = generator("affect", data_seed, "faces")
    state = torch.rand(faces, 2, generator=rng) * 2 - 1
    labelled = {"x": draw_faces(state, rng), "y": sector(state), "affect": state}
    pool = torch.rand((2 if tiny else 10) * faces, 2, generator=rng) * 2 - 1
    return Task(
        teacher=None,
        student=partial(Frames, 8 if tiny else 16),
        train=sets[0],
        valid=sets[1],
        test=sets[2],
        score=ccc,
        budget=Budget(steps=24, batch=16, optimiser=Optimiser("adamw", lr=1e-2))
        if tiny
        else Budget(steps=600, batch=32, optimiser=Optimiser("adamw", lr=3e-3)),
        data={
            "expressions": labelled,
            "triplets": triplets(faces, rng),
            "unlabelled": draw_faces(pool, rng),
        },
        name="affect",
    )


def sequences(n: int, length: int, rng: torch.Generator) -> dict[str, Any]:
    """N sequences of faces and sounds, each of one person, and their valence and arousal."""
    y = courses(n, length + DELAY, rng)
    who = torch.rand(n, 4, generator=rng)[:, None].expand(n, length, 4)
    late, y = y[:, :-DELAY], y[:, DELAY:]
    faces = draw_faces(y.flatten(0, 1), rng, who.flatten(0, 1))
    sounds = draw_sounds(late.flatten(0, 1), rng)
    return {
        "x": {
            "face": faces.view(n, length, *faces.shape[1:]),
            "sound": sounds.view(n, length, *sounds.shape[1:]),
        },
        "y": y,
    }


def courses(n: int, length: int, rng: torch.Generator) -> Tensor:
    """Smooth courses in (-1, 1), (n, length, 2): an AR(2) process after its beginning."""
    a, b = 2 * 0.93 * math.cos(0.15), -(0.93**2)
    steps = [torch.zeros(n, 2), torch.zeros(n, 2)]
    for noise in torch.randn(length + 30, n, 2, generator=rng):
        steps.append(a * steps[-1] + b * steps[-2] + noise)
    course = torch.stack(steps[-length:], 1)
    return (course / 12).tanh()


def draw_faces(state: Tensor, rng: torch.Generator, who: Tensor | None = None) -> Tensor:
    """Faces (n, 1, 16, 16) of valence and arousal (n, 2); `who` (n, 4) in [0, 1) is the person."""
    n = len(state)
    who = torch.rand(n, 4, generator=rng) if who is None else who
    axis = torch.linspace(-1, 1, SIDE)
    size = 0.8 + 0.4 * who[:, 2, None, None]
    u = (axis[None, None, :] - 0.3 * (who[:, 0, None, None] - 0.5)) / size
    v = (axis[None, :, None] - 0.3 * (who[:, 1, None, None] - 0.5)) / size
    valence, arousal = state[:, 0, None, None], state[:, 1, None, None]
    mouth = 0.45 - 0.9 * valence * (u.square() - 0.12)
    face = _line((v - mouth) / 0.12) * (u.abs() < 0.5)
    tall = 0.1 + 0.07 * arousal
    for side in (-0.4, 0.4):
        face = face + _line(torch.hypot((u - side) / 0.14, (v + 0.3) / tall) / 1.2)
    bright = 0.7 + 0.6 * who[:, 3, None, None]
    return (bright * face + _GRAIN["face"] * torch.randn(n, SIDE, SIDE, generator=rng))[:, None]


def _line(distance: Tensor) -> Tensor:
    return (-distance.square()).exp()


def draw_sounds(state: Tensor, rng: torch.Generator) -> Tensor:
    """Log-mel patches (n, 1, 16, 8) of valence, which is the pitch, and arousal, the loudness."""
    n = len(state)
    pitch = MELS / 2 + 4 * state[:, 0] + 0.7 * torch.randn(n, generator=rng)
    band = torch.arange(MELS)[None, :, None]
    ridge = _line((band - pitch[:, None, None]) / 1.5).expand(n, MELS, FRAMES)
    loud = 1 + 0.6 * state[:, 1, None, None]
    noise = _GRAIN["sound"] * torch.randn(n, MELS, FRAMES, generator=rng)
    return (loud * ridge + noise)[:, None]


def sector(state: Tensor) -> Tensor:
    """The class of valence and arousal (n, 2): one of eight sectors around their middle."""
    turn = torch.atan2(state[:, 1], state[:, 0]) / (2 * math.pi) + 0.5
    return (turn * EXPRESSIONS).long().clamp(0, EXPRESSIONS - 1)


def triplets(n: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Triplets of faces, the two that are most alike first, and whether all are of one class."""
    three = torch.rand(n, 3, 2, generator=rng) * 2 - 1
    near = torch.arange(n) % 3 == 0  # around one point, so that many are of one class
    three[near] = (three[near][:, :1] + 0.3 * (three[near] - 0.5)).clamp(-1, 1)
    gaps = (three - three.roll(1, 1)).norm(dim=2)  # of 0 and 2, 1 and 0, 2 and 1
    odd = torch.tensor([1, 2, 0])[gaps.argmin(1)]
    order = torch.stack(((odd + 1) % 3, (odd + 2) % 3, odd), 1)
    three = three.gather(1, order[..., None].expand(n, 3, 2))
    kinds = sector(three.flatten(0, 1)).view(n, 3)
    one_class = (kinds == kinds[:, :1]).all(1)
    faces = draw_faces(three.flatten(0, 1), rng)
    return {"x": faces.view(n, 3, *faces.shape[1:]), "one_class": one_class}


class Extractor(nn.Sequential):
    """Two convolutions and a linear layer: (B, 1, H, W) -> (B, 2 width), for H and W at most 16."""

    def __init__(self, width: int, high: int, wide: int) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * (high // 4) * (wide // 4), 2 * width),
            nn.ReLU(),
        )


class Frames(nn.Module):
    """Valence and arousal of each step from the two extractors' features of that step alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.face = Extractor(width, SIDE, SIDE)
        self.sound = Extractor(width, MELS, FRAMES)
        self.head = nn.Linear(4 * width, 2)

    def forward(self, face: Tensor, sound: Tensor) -> Tensor:
        """(B, T, ...) of each -> (B, T, 2)."""
        joined = torch.cat((self.face(face.flatten(0, 1)), self.sound(sound.flatten(0, 1))), 1)
        values: Tensor = self.head(joined)
        return values.view(*face.shape[:2], -1)


def _one_of(name: str, value: object, known: str) -> None:
    if value != known:
        raise Missing(f"the world affect has no {name} {value!r}; there is {known!r}")
