"""Hot paths, measured beside what people do today, in turn, in one process; the ratio counts."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from limbeck.bench._loops import bare_loop, limbeck_loop, small, torchdistill_loop
from limbeck.bench._speed_objectives import told as objectives_told
from limbeck.bench._speed_steps import told as step_rows
from limbeck.bench._speed_text import told as text_rows
from limbeck.core.cache import Cache, CacheWriter
from limbeck.core.data import Batch
from limbeck.core.views import Look
from limbeck.registry import get


@dataclass(frozen=True)
class Row:
    """One path: seconds of each way (the best run), and the target for this library's, in words.

    What cannot be measured has no ways, but says why not.
    """

    name: str
    seconds: Mapping[str, float]
    unit: str
    target: str
    rises: Mapping[str, float] = field(default_factory=dict)  # of the peak of memory, in bytes
    why_not: str = ""

    def ratios(self) -> dict[str, float]:
        """Each way's time over the first's."""
        return _over_first(self.seconds)

    def ratios_of_rises(self) -> dict[str, float]:
        """Each way's memory over the first's, where that needs any."""
        return _over_first(self.rises)


def _over_first(values: Mapping[str, float]) -> dict[str, float]:
    first = next(iter(values.values()), 0.0)
    return {k: v / first for k, v in values.items()} if first else {}


def best(ways: Mapping[str, Callable[[], float]], times: int) -> dict[str, float]:
    """The least of several measurements of each way, taken in turn."""
    out: dict[str, list[float]] = {k: [] for k in ways}
    for _ in range(times):
        for name, way in ways.items():
            gc.collect()
            out[name].append(way())
    return {k: min(v) for k, v in out.items()}


def timed(f: Callable[[], Any], repeat: int = 1) -> float:
    """Seconds of one call, the mean of several."""
    start = time.perf_counter()
    for _ in range(repeat):
        f()
    return (time.perf_counter() - start) / repeat


def step_row(
    name: str,
    model: Callable[[int], nn.Module],
    shape: tuple[int, ...],
    batch: int,
    steps: int,
    times: int,
    target: str,
) -> Row:
    """A step of KD: a bare loop, `fit`, and torchdistill where it is installed."""
    torch.manual_seed(0)
    x, y = torch.randn(batch * 16, *shape), torch.randint(0, 10, (batch * 16,))

    def way(loop: Callable[..., float]) -> Callable[[], float]:
        return lambda: loop(model(0), model(1), x, y, batch, steps)

    ways = {"bare loop": way(bare_loop), "limbeck": way(limbeck_loop)}
    try:
        import logging

        import torchdistill  # noqa: F401

        logging.disable(logging.INFO)
        ways["torchdistill"] = way(torchdistill_loop)
    except ImportError:
        pass
    return Row(name, best(ways, times), "ms/step", target)


# -- taps, the bank, the cache -------------------------------------------------------------------


def taps_row(times: int) -> Row:
    """A forward pass of a ResNet-18: plain, with three taps, stopped after the first of them."""
    from torchvision.models import resnet18

    model = resnet18().eval()
    x = torch.randn(8, 3, 96, 96)
    batch = Batch(x=x)

    def plain() -> None:
        with torch.no_grad():
            model(x)

    def with_taps(names: tuple[str, ...]) -> float:
        look = Look(
            model, "teacher", {n: n for n in ("layer1", "layer2", "layer3")}, grad=False, early=True
        )
        try:
            for _ in range(2):  # the first pass makes the plan
                side = look.side_of(batch)
                start = time.perf_counter()
                for n in names:
                    getattr(side, n)
                seconds = time.perf_counter() - start
                look.settle()
            return seconds
        finally:
            look.close()

    ways = {
        "plain": lambda: timed(plain),
        "three taps": lambda: with_taps(("layer1", "layer2", "layer3", "logits")),
        "early exit after layer1": lambda: with_taps(("layer1",)),
    }
    return Row(
        "taps on ResNet-18, forward",
        best(ways, times),
        "ms",
        "three taps 1.02x; early exit at least 2.6x faster",
    )


def bank_row(times: int) -> Row:
    """Scores of a CRD bank, forward and backward: B=64, D=128, K=16384, N=50,000."""
    similarities = import_module(get("crd").__module__).similarities
    torch.manual_seed(0)
    anchor = F.normalize(torch.randn(64, 128), dim=1).requires_grad_()
    bank = F.normalize(torch.randn(50_000, 128), dim=1)
    numbers = torch.randint(0, 50_000, (64, 16_385))

    def way(whole: bool) -> Callable[[], float]:
        def run() -> None:
            torch.autograd.grad(
                similarities(anchor, bank, numbers, whole).logsumexp(1).sum(), anchor
            )

        return lambda: timed(run)

    ways = {"gather, then bmm": way(False), "one matmul, then gather": way(True)}
    return Row(
        "CRD bank, forward + backward", best(ways, times), "ms", "0.52 s -> 0.022 s: 24x faster"
    )


def cache_row(times: int, rows: int = 10_000, width: int = 1000) -> Iterator[Row]:
    """All rows of a teacher cache once, in random order, from a warm page cache."""
    with tempfile.TemporaryDirectory() as place:
        logits = torch.randn(rows, width)
        one = Path(place) / "one"
        one.mkdir()
        for i in range(rows):
            torch.save(logits[i].clone(), one / f"{i}.pt")
        writer = CacheWriter(Path(place) / "cache", {"data": "speed"}, rows)
        writer.write(torch.arange(rows), {"logits": logits})
        writer.close()
        order = torch.randperm(rows)
        cache = Cache(Path(place) / "cache")

        def files() -> None:
            for i in order.tolist():
                torch.load(one / f"{i}.pt", weights_only=True)  # noqa: TID251 - the rival's way

        def mapped() -> None:
            for chunk in order.view(10, -1):
                cache.rows(chunk)

        ways = {"one file a sample": lambda: timed(files), "limbeck": lambda: timed(mapped)}
        yield Row(
            f"teacher cache, {rows} x {width} logits", best(ways, times), "ms", "2.6 s -> 0.007 s"
        )


def rows(quick: bool = False) -> Iterator[Row]:
    """All paths, one after the other; `quick` takes fewer steps and looser numbers."""
    times, few = (2, 4) if quick else (5, 1)
    yield step_row(
        "step of KD, small CNN, batch 32",
        lambda i: small(8 * (i + 1)),
        (1, 16, 16),
        32,
        300 // few,
        times,
        "at most 0.8 ms over a bare loop",
    )
    from torchvision.models import resnet18

    yield step_row(
        "step of KD, ResNet-18, batch 8, 64x64",
        lambda i: resnet18(num_classes=10),
        (3, 64, 64),
        8,
        16 // few,
        times,
        "at most 5 % over a bare loop",
    )
    yield taps_row(times * 3)
    yield bank_row(times)
    yield from cache_row(times)
    for told in (text_rows(quick), step_rows(quick, best)):
        for name, seconds, unit, target, rises in told:
            yield Row(name, seconds, unit, target, rises)


def objectives(keys: Sequence[str] = (), quick: bool = False) -> Iterator[Row]:
    """Vision objectives alone, those of some keys or all, beside torchdistill's where it has them.

    Raises:
        Missing: there is no such method.
    """
    for name, seconds, rises, why_not in objectives_told(keys, quick):
        target = "at most torchdistill's" if len(seconds) > 1 else ""
        yield Row(name, seconds, "ms", target, rises, why_not)
