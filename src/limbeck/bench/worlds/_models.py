"""The models of the worlds: MLP, CNN (also deep and thin), ResNet and a small ViT.

Every model takes `(in_shape, classes)`, gives plain logits (N, classes), names its last linear
layer `head` and carries a table `taps`: where the standard entries of a view are read.

- `mid`: one middle feature map (B, C, H, W), or hidden vector (B, D) of an MLP;
- `feature`: the last such map or vector before pooling;
- `embedding`: the input of `head` (B, D);
- `blocks`: the list of what each block (stage) gives.

Nothing is changed in place.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Taps = dict[str, str | list[str]]


def _stage_taps(stages: int) -> Taps:
    """Give the table of a model whose stages are `body.0` to `body.{stages - 1}`."""
    paths = [f"body.{i}" for i in range(stages)]
    return {
        "mid": paths[(stages - 1) // 2],
        "feature": paths[-1],
        "embedding": "head:in",
        "blocks": list(paths),
    }


class MLP(nn.Module):
    """Stages of linear layers with ReLU; pictures are flattened first.

    Args:
        in_shape: shape of one sample.
        classes: number of logits.
        widths: hidden units, one number a stage.
        depths: layers in each stage; one each by default.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        classes: int,
        widths: Sequence[int] = (32, 32),
        depths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        here, stages = math.prod(in_shape), []
        for width, depth in zip(widths, depths or [1] * len(widths), strict=True):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [nn.Linear(here, width), nn.ReLU()]
                here = width
            stages.append(nn.Sequential(*layers))
        self.body = nn.Sequential(*stages)
        self.head = nn.Linear(here, classes)
        self.taps = _stage_taps(len(stages))

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, classes)."""
        return self.head(self.body(x.flatten(1)))  # type: ignore[no-any-return]


class CNN(nn.Module):
    """Stages of 3x3 convolutions with BatchNorm and ReLU, halved by max-pooling between stages.

    A global average pool and the linear head follow. Without BatchNorm, many thin layers are hard
    to train from scratch, which is what hints are for (FitNets).

    Args:
        in_shape: (C, H, W).
        classes: number of logits.
        widths: channels, one number a stage.
        depths: convolutions in each stage; one each by default.
        norm: whether BatchNorm follows each.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        classes: int,
        widths: Sequence[int] = (8, 16, 32),
        depths: Sequence[int] | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        here = in_shape[0]
        stages: list[nn.Module] = []
        for width, depth in zip(widths, depths or [1] * len(widths), strict=True):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers.append(nn.Conv2d(here, width, 3, padding=1, bias=not norm))
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
                here = width
            if len(stages) < len(widths) - 1:
                layers.append(nn.MaxPool2d(2))
            stages.append(nn.Sequential(*layers))
        self.body = nn.Sequential(*stages)
        self.head = nn.Linear(here, classes)
        self.taps = _stage_taps(len(stages))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """relu(x + conv-bn-relu-conv-bn(x)); a 1x1 convolution fits x where the shape changes."""

    def __init__(self, here: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(here, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or here != width:
            fit = nn.Conv2d(here, width, 1, stride, bias=False)
            self.skip = nn.Sequential(fit, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, here, H, W) -> (B, width, H/stride, W/stride)."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inner + self.skip(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """The CIFAR form of the residual network: a 3x3 stem, then stages of basic blocks.

    Each stage but the first halves the map. Depths (n, n, n) make ResNet-(6n+2).

    Args:
        in_shape: (C, H, W).
        classes: number of logits.
        widths: channels, one number a stage.
        depths: blocks in each stage.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        classes: int,
        widths: Sequence[int] = (8, 16, 32),
        depths: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        here = widths[0]
        stem = nn.Conv2d(in_shape[0], here, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(here), nn.ReLU())
        stages = []
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [BasicBlock(here, width, 2 if i else 1)]
            blocks += [BasicBlock(width, width, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            here = width
        self.body = nn.Sequential(*stages)
        self.head = nn.Linear(here, classes)
        self.taps = _stage_taps(len(stages))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        return self.head(self.body(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class ViTBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        # Tokens come first inside, and weights are asked for: both keep torch on its plain path.
        # The fused ones round differently with the mode and with the hooks that are set, and
        # cannot be differentiated twice.
        self.attention = nn.MultiheadAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        h = self.norm1(x).transpose(0, 1)
        x = x + self.attention(h, h, h, average_attn_weights=False)[0].transpose(0, 1)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Grid(nn.Module):
    """Lays patch tokens out as a map, without the class token; only taps read it."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + rows * rows, D) -> (B, D, rows, rows)."""
        return x[:, 1:].transpose(1, 2).reshape(len(x), -1, self.rows, self.rows)


class ViT(nn.Module):
    """A small vision transformer with a class token and learned positions.

    `mid` and `feature` are maps of patches (B, D, rows, rows), as for a CNN; `blocks` are
    the tokens (B, T, D), class token first. Pictures are square; patches are the smallest of at
    least 4 pixels that are at most 4 in a row.

    Args:
        in_shape: (C, S, S).
        classes: number of logits.
        dim: width of the tokens.
        depth: number of blocks.
        heads: attention heads.
    """

    def __init__(
        self, in_shape: Sequence[int], classes: int, dim: int = 32, depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        side = in_shape[1]
        patch = next(p for p in range(4, side + 1) if side % p == 0 and side // p <= 4)
        rows = side // patch
        self.patches = nn.Conv2d(in_shape[0], dim, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        # Large at the start: with the usual 0.02, few steps on small data hardly tell places apart.
        self.positions = nn.Parameter(torch.randn(1, 1 + rows * rows, dim) * 0.5)
        self.body = nn.ModuleList(ViTBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.mid_map, self.last_map = Grid(rows), Grid(rows)
        self.head = nn.Linear(dim, classes)
        self.taps: Taps = {
            "mid": "mid_map",
            "feature": "last_map",
            "embedding": "head:in",
            "blocks": [f"body.{i}" for i in range(depth)],
        }

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), 1) + self.positions
        for i, block in enumerate(self.body):
            x = block(x)
            if i == (len(self.body) - 1) // 2:
                self.mid_map(x)
        x = self.norm(x)
        self.last_map(x)
        return self.head(x[:, 0])  # type: ignore[no-any-return]
