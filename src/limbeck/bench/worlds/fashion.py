"""`fashion`: Fashion-MNIST, 28x28 pictures of clothes, whole or as a small copy for trials."""

import gzip
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from limbeck.bench.worlds._build import Plan, Sets, build, spoiled, stratified, whole
from limbeck.bench.worlds._teachers import Recipe, Samples
from limbeck.core.files import cache_folder
from limbeck.core.task import Task
from limbeck.errors import Missing, UsageError, nearest

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
NAMES = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_VALID, _POOL = 2000, 58_000
PLANS = {
    "28x28": Plan(
        pair=("cnn-large", "cnn-small"),
        recipe=Recipe(epochs=6),
        epochs=5,
        tiny_pair=("cnn", "cnn-tiny"),
    ),
    "14x14": Plan(
        pair=("cnn-large", "cnn-small"),
        recipe=Recipe(epochs=15),
        epochs=15,
        tiny_pair=("cnn", "cnn-tiny"),
    ),
}


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    size: str | None = None,
    n: int | None = None,
    folder: str | None = None,
    tail: float = 1.0,
    noise: float = 0.0,
    data_seed: int = 0,
) -> Task:
    """Make the task: x (N, 1, S, S), about centred and of unit size; ten classes.

    Args:
        teacher: a family, several joined by '+', or 'none'; 'cnn-large' by default.
        student: a family; 'cnn-small' by default.
        seed: of the run; makes no difference here.
        tiny: 192 pictures and 24 steps.
        size: '28x28', or '14x14' (each 2x2 pixels averaged, for trials); '28x28' by default, and
            '14x14' for the tiny world.
        n: training pictures; by default all 58,000 that are not for choices, and 4,000 of '14x14'.
        folder: with the four files of Fashion-MNIST; by default Debian's, else a download.
        tail: above 1, of n so many go that the first class is so many times as frequent as the
            last, with even ratios between; valid and test stay as they are.
        noise: the share of training labels that are wrong; the true ones are `data["clean"]`.
        data_seed: of the split into training and validation, the order of classes and the wrong
            labels.
    """
    size = size or ("14x14" if tiny else "28x28")
    if size not in PLANS:
        raise Missing(f"fashion has no size {size!r}{nearest(str(size), PLANS)}")
    n = whole("n", n or (192 if tiny else 4000 if size == "14x14" else _POOL), 64, _POOL)
    where = find(folder)
    (x, y), (x_test, y_test) = _part(where, "train", size), _part(where, "test", size)
    valid, pool = torch.split(stratified(y, "fashion", data_seed), [_VALID, _POOL])
    train, more = pool[:n], pool[n : n + 8000]
    if tiny:
        valid, more, x_test, y_test = valid[:64], more[:128], x_test[:64], y_test[:64]
    mean, std = x[train].mean(), x[train].std()

    def scaled(pictures: Tensor) -> Tensor:
        return (pictures - mean) / std

    sets = Sets(
        train=(scaled(x[train]), y[train]),
        valid=(scaled(x[valid]), y[valid]),
        test=(scaled(x_test), y_test.clone()),
        names=NAMES,
        unlabelled=scaled(x[more]),
    )
    sets = spoiled("fashion", sets, tail, noise, data_seed)
    return build(f"fashion-{size}", sets, PLANS[size], teacher, student, tiny)


def find(folder: str | None) -> Path:
    """Give the folder with the files: the one given, Debian's, or one that is downloaded once.

    Raises:
        Missing: none of them is there.
    """
    if folder is not None:
        if _holds(Path(folder)):
            return Path(folder)
        raise Missing(
            f"{folder} does not hold Fashion-MNIST; it needs the files "
            f"{', '.join(file for pair in _FILES.values() for file in pair)}, each also with .gz"
        )
    kept = cache_folder() / "datasets"
    raw = kept / "FashionMNIST" / "raw"  # where torchvision puts them
    for place in (DEBIAN, raw):
        if _holds(place):
            return place
    why = "torchvision, which would download it, is not installed"
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(kept), download=True)
        if _holds(raw):
            return raw
    except ImportError:
        pass
    except (OSError, RuntimeError) as error:
        why = f"it could not be downloaded ({error})"
    raise Missing(
        f"Fashion-MNIST is not on this machine, and {why}; install Debian's package "
        "dataset-fashion-mnist, or give the world a folder=..."
    )


def _holds(folder: Path) -> bool:
    return all(_file(folder, name).is_file() for pair in _FILES.values() for name in pair)


def _file(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() else folder / name


@lru_cache(4)
def _part(folder: Path, part: str, size: str) -> Samples:
    pictures, labels = (read_idx(_file(folder, name)) for name in _FILES[part])
    x = pictures[:, None].float()
    return avg_pool2d(x, 2) if size == "14x14" else x, labels.long()


def read_idx(path: Path) -> Tensor:
    """Read a file of unsigned bytes in the IDX format, plain or by gzip.

    Four bytes lead: 0, 0, 8 (unsigned bytes), the number of dimensions; then each dimension as
    four bytes, the highest first; then the values, the last dimension running fastest.

    Raises:
        UsageError: the file is damaged or is no such file.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UsageError(f"could not read {path}: {error}") from None
    shape: Sequence[int] = ()
    if raw[:3] == b"\0\0\x08" and len(raw) >= 4 + 4 * (*raw, 255)[3]:
        shape = np.frombuffer(raw, ">u4", raw[3], 4).tolist()
    start = 4 + 4 * len(shape)
    if not shape or len(raw) - start != math.prod(shape):
        raise UsageError(f"{path} is damaged or is not an IDX file of bytes; get a whole copy")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy())
