"""Joining what micro-batches and processes hold."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as several

from limbeck.core.processes import as_the_first, averaged


@pytest.mark.parametrize("n", [2, 3, 5, 6, 7])
def test_a_buffer_that_nobody_moved_keeps_its_bits(n: int) -> None:
    same = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(averaged([[same.clone()] for _ in range(n)])[0], same)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_floats_are_averaged_and_of_integers_the_highest_counts(n: int) -> None:
    g = torch.Generator().manual_seed(1)
    floats = [torch.randn(4, 2, generator=g) for _ in range(n)]
    counts = [torch.tensor(k) for k in range(n)]
    mean, most = averaged([[f, c] for f, c in zip(floats, counts, strict=True)])
    expected = sum(f.double() for f in floats) / n
    torch.testing.assert_close(mean.double(), expected, rtol=0, atol=1e-6)
    assert int(most) == n - 1


def _ask(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    mine = {"rank": rank, "path": str(folder / str(rank)), "none": None}
    told = [as_the_first(mine), as_the_first(None if rank == 0 else "mine"), as_the_first(rank)]
    (folder / f"{rank}.json").write_text(json.dumps([mine, told]))
    dist.destroy_process_group()


def test_as_the_first_gives_all_what_the_first_holds(tmp_path: Path) -> None:
    assert as_the_first("alone") == "alone"
    several.spawn(_ask, (tmp_path,), nprocs=2)
    (first, told), (second, also) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first != second
    assert told == also == [first, None, 0]
