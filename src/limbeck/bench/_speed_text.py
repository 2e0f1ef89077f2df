"""Hot paths of language models: divergences over a vocabulary, and a teacher's entries in bytes."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.losses.divergences import Divergence, summed
from limbeck.core.packing import Layout, select_topk
from limbeck.core.signals import Head, Linear, Sampled

SIZES = {"V=49152, N=1024, H=576": (49152, 1024, 576), "V=151936, N=512, H=896": (151936, 512, 896)}
TARGETS = {
    ("forward_kl", 49152): "1.9 s, 270 MB (plain torch 2.2 s, 1364 MB)",
    ("jsd", 49152): "2.2 s, 340 MB (plain torch 5.3 s, 2517 MB)",
    ("reverse_kl", 49152): "2.0 s, 270 MB (plain torch 2.4 s, 1364 MB)",
    ("jsd", 151936): "5.6 s, 980 MB (plain torch 9.0 s, 3879 MB)",
}
Way = Callable[[], Any]
back = torch.autograd.backward


def peak(way: Way) -> tuple[float, float]:
    """Seconds of a call, and by how many bytes the process's peak rose in it (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew
    before = _peak()
    start = time.perf_counter()
    way()
    seconds = time.perf_counter() - start
    return seconds, _peak() - before


def _peak() -> float:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def in_turn(
    ways: Mapping[str, Way], times: int, leaves: Sequence[Tensor]
) -> dict[str, tuple[float, float]]:
    """Seconds (the best run) and bytes (the largest rise) of each way, taken in turn.

    Each begins without gradients of `leaves`.
    """
    found: dict[str, tuple[float, float]] = {}
    for _ in range(times):
        for way, run in ways.items():
            for leaf in leaves:
                leaf.grad = None
            seconds, rise = peak(run)
            best, most = found.get(way, (seconds, rise))
            found[way] = (min(best, seconds), max(most, rise))
    return found


def plain(name: str, s: Tensor, t: Tensor) -> Tensor:
    """The mean over places as one writes it down, from logits (N, V)."""
    lq, lp = s.log_softmax(-1), t.log_softmax(-1)
    if name == "forward_kl":
        return F.kl_div(lq, lp, reduction="batchmean", log_target=True)
    if name == "reverse_kl":
        return F.kl_div(lp, lq, reduction="batchmean", log_target=True)
    m = torch.logsumexp(torch.stack([lq, lp]), 0) - torch.tensor(2.0).log()
    halves = [F.kl_div(m, each, reduction="batchmean", log_target=True) for each in (lp, lq)]
    return (halves[0] + halves[1]) / 2


def fused(name: str, size: tuple[int, int, int], times: int) -> dict[str, tuple[float, float]]:
    """Seconds (the best run) and bytes (the largest rise) of each way, taken in turn."""
    v, n, h = size
    draw = torch.Generator().manual_seed(0)
    hidden, theirs = (torch.randn(n, h, generator=draw) for _ in range(2))
    head, teacher = (torch.randn(v, h, generator=draw) * 0.05 for _ in range(2))
    hidden.requires_grad_(), head.requires_grad_()
    weights = torch.full((n,), 1 / n)
    ways: dict[str, Way] = {
        "plain torch": lambda: back(plain(name, hidden @ head.T, theirs @ teacher.T)),
        **_rivals(name, hidden, head, theirs, teacher),
        "limbeck": lambda: back(
            summed(
                Divergence(name),  # type: ignore[arg-type]
                Linear(hidden, Head(head)),
                Linear(theirs, Head(teacher)),
                weights,
            )
        ),
    }
    return in_turn(ways, times, (hidden, head))


def _rivals(name: str, *tensors: Tensor) -> Mapping[str, Way]:
    """TRL's loss and Liger's fused one, where they are installed; both know the JSD's family."""
    hidden, head, theirs, teacher = tensors
    beta = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}[name]
    ways: dict[str, Way] = {}
    try:
        from trl.experimental.gkd import GKDTrainer

        jsd: Any = GKDTrainer.generalized_jsd_loss

        def trl() -> None:
            s, t = (hidden @ head.T)[None], (theirs @ teacher.T)[None]
            back(jsd(s, t, beta=beta))

        ways["trl"] = trl
    except Exception:  # not installed, or not with these versions
        pass
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, chunk_size=128
        )
        labels = torch.zeros(len(hidden), dtype=torch.int64)
        ways["liger, chunk 128"] = lambda: back(loss(hidden, head, theirs, teacher, labels))
    except Exception:
        pass
    return ways


def sparse(times: int) -> dict[str, tuple[float, float]]:
    """A step's loss from 12 draws against cross-entropy: head and loss, the same road."""
    v, n, h = SIZES["V=49152, N=1024, H=576"]
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, h, generator=draw).requires_grad_()
    head = (torch.randn(v, h, generator=draw) * 0.05).requires_grad_()
    ids = torch.randint(0, v, (n, 12), generator=draw)
    weights, how = torch.full((n,), 1 / n), Divergence("forward_kl")

    def of(k: int) -> Way:
        t = Sampled(ids[:, :k], torch.full((n, k), 1 / k), v)
        return lambda: back(summed(how, Linear(hidden, Head(head)), t, weights))

    ways = {
        "plain cross-entropy": lambda: back(F.cross_entropy(hidden @ head.T, ids[:, 0])),
        "fused cross-entropy": of(1),
        "fused, 12 draws": of(12),
    }
    return in_turn(ways, times, (hidden, head))


def packing(times: int, tokens: int = 2000) -> dict[str, float]:
    """Seconds for packing and for unpacking 50 entries of so many tokens."""
    logits = 4 * torch.randn(tokens, 49152, generator=torch.Generator().manual_seed(0))
    ids, logp = select_topk(logits, 50)
    layout = Layout("topk", 50, 49152)
    rows = layout.pack(ids, logp)

    def timed(f: Way) -> float:
        start = time.perf_counter()
        f()
        return time.perf_counter() - start

    pack = min(timed(lambda: layout.pack(ids, logp)) for _ in range(times))
    return {"pack": pack, "unpack": min(timed(lambda: layout.unpack(rows)) for _ in range(times))}


def told(quick: bool) -> Iterator[tuple[str, Mapping[str, float], str, str, Mapping[str, float]]]:
    """Rows: name, seconds, unit, target, bytes."""
    times = 2 if quick else 4
    for (name, v), target in TARGETS.items():
        label, size = next((k, s) for k, s in SIZES.items() if s[0] == v)
        found = fused(name, size, times)
        seconds = {way: pair[0] for way, pair in found.items()}
        rises = {way: pair[1] for way, pair in found.items()}
        yield f"head and {name}, {label}", seconds, "ms", target, rises
    found = sparse(times)
    yield (
        "head and 12 draws, V=49152, N=1024, H=576",
        {way: pair[0] for way, pair in found.items()},
        "ms",
        "at most 1.1x cross-entropy",
        {way: pair[1] for way, pair in found.items()},
    )
    yield (
        "50 entries of 2,000 tokens in bytes",
        packing(times),
        "ms",
        "pack 20,000, unpack 100,000 tokens/s: 100 and 20 ms",
        {},
    )
