"""What is made of the student's extractors, and the augmentation of faces."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.method import Rng


def width_of(extractor: nn.Module, x: Tensor) -> int:
    """How many features (B, F) an extractor gives of x."""
    with torch.no_grad():
        return int(extractor(x).shape[1])


class Expressions(nn.Module):
    """An embedding of faces, of length 1, and the classes' logits from it.

    Args:
        extractor: faces (B, C, H, W) -> (B, features).
        features: how many.
        dim: of the embedding.
        classes: of expressions.
    """

    def __init__(self, extractor: nn.Module, features: int, dim: int, classes: int) -> None:
        super().__init__()
        self.extractor = extractor
        self.project = nn.Linear(features, dim)
        self.head = nn.Linear(dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Faces (B, C, H, W) -> (B, dim)."""
        return F.normalize(self.project(self.extractor(x)).float(), dim=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Faces (B, C, H, W) -> `embedding` (B, dim) and `logits` (B, classes)."""
        e = self.embed(x)
        return {"embedding": e, "logits": self.head(e)}


class Sounds(nn.Module):
    """What is followed, from each step's sound alone.

    Args:
        extractor: (B, ...) -> (B, features).
        features: how many.
        name: of the sound in x.
        outputs: how many things are followed.
    """

    def __init__(self, extractor: nn.Module, features: int, name: str, outputs: int) -> None:
        super().__init__()
        self.extractor, self.name = extractor, name
        self.head = nn.Linear(features, outputs)

    def forward(self, **x: Tensor) -> Tensor:
        """(B, T, ...) -> (B, T, outputs)."""
        steps = x[self.name]
        features = self.extractor(steps.flatten(0, 1))
        values: Tensor = self.head(features)
        return values.view(*steps.shape[:2], -1)


class Fusion(nn.Module):
    """Features of both modalities joined at each step, an LSTM over the steps, a linear layer.

    The extractors are frozen and stay in eval mode. What comes out is moved `delay` steps later,
    since people who rate are behind what they see, and in eval mode averaged over `smooth` steps
    and brought to `scale` and `offset`.

    Args:
        face: embeds faces.
        sound: the extractor of sounds.
        names: of faces and sounds in x.
        features: how many both give together.
        hidden, layers: of the LSTM.
        outputs: how many things are followed; 0 is one, without a dimension of its own.
        delay: in steps.
        smooth: an odd number of steps.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        face: Expressions,
        sound: nn.Module,
        names: tuple[str, str],
        features: int,
        hidden: int,
        layers: int,
        outputs: int,
        delay: int,
        smooth: int,
    ) -> None:
        super().__init__()
        self.face, self.sound = face.requires_grad_(False), sound.requires_grad_(False)
        self.names, self.delay, self.smooth, self.outputs = names, delay, smooth, outputs
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, max(1, outputs))
        self.register_buffer("scale", torch.ones(max(1, outputs)))
        self.register_buffer("offset", torch.zeros(max(1, outputs)))

    def train(self, mode: bool = True) -> Fusion:
        """Of all but the extractors."""
        super().train(mode)
        self.face.eval()
        self.sound.eval()
        return self

    def forward(self, **x: Tensor) -> Tensor:
        """(B, T, ...) of each -> (B, T, outputs), or (B, T)."""
        faces, sounds = (x[name] for name in self.names)
        e, f = self.face.embed(faces.flatten(0, 1)), self.sound(sounds.flatten(0, 1))
        joined = torch.cat((e.to(f.dtype), f), 1).view(*faces.shape[:2], -1)
        values: Tensor = self.head(self.lstm(joined)[0])
        if self.delay:
            first = values[:, :1].expand(-1, min(self.delay, values.shape[1]), -1)
            values = torch.cat((first, values), 1)[:, : values.shape[1]]
        if not self.training:
            values = smoothed(values, self.smooth) * self.scale + self.offset
        return values if self.outputs else values.squeeze(-1)


def smoothed(values: Tensor, steps: int) -> Tensor:
    """The mean over an odd number of `steps` around each; at the ends over those that are there.

    Shapes: values (B, T, D) -> the same.
    """
    if steps == 1:
        return values
    rows = values.transpose(1, 2)
    mean = F.avg_pool1d(rows, steps, 1, steps // 2, count_include_pad=False)
    return mean.transpose(1, 2)


def augmented(x: Tensor, rng: Rng, index: Tensor, method: Any) -> Tensor:
    """Faces turned around, moved, lit otherwise, and with a square left out, each by its own draws.

    Args:
        x: (B, C, H, W).
        rng: of the step.
        index: (B,) numbers of the samples.
        method: has `flip`, `move` in pixels, `light` and `erase`.
    """
    u = rng("augmentation", index).rand(6).to(x.device)
    height, width = x.shape[2:]
    if method.flip:
        x = torch.where((u[:, 0] < 0.5)[:, None, None, None], x.flip(3), x)
    if method.move:
        down, right = ((u[:, i] * (2 * method.move + 1)).long() - method.move for i in (1, 2))
        x = _moved(_moved(x, down, 2), right, 3)
    if method.light:
        x = x * (1 + method.light * (2 * u[:, 3, None, None, None] - 1))
    if method.erase:
        inside = _within(u[:, 4], height, method.erase)[:, :, None]
        inside = inside & _within(u[:, 5], width, method.erase)[:, None, :]
        x = torch.where(inside[:, None], x.mean((1, 2, 3), keepdim=True), x)
    return x


def _moved(x: Tensor, by: Tensor, dim: int) -> Tensor:
    """Each sample moved along a dimension by its own number of pixels; the border is repeated."""
    size = x.shape[dim]
    at = (torch.arange(size, device=x.device) - by[:, None]).clamp(0, size - 1)
    shape = [len(x), 1, 1, 1]
    shape[dim] = size
    return x.gather(dim, at.view(shape).expand_as(x))


def _within(u: Tensor, size: int, share: float) -> Tensor:
    """Whether each of `size` places lies in a piece of this share that begins by u: (B, size)."""
    side = round(share * size)
    start = (u * (size - side + 1)).long()
    at = torch.arange(size, device=u.device)
    return (at >= start[:, None]) & (at < start[:, None] + side)
