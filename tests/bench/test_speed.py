"""`limbeck speed` measures; here only that each path runs and that both ways give the same."""

import pytest
import torch

from limbeck.bench import _loops as loops
from limbeck.bench import speed


def test_rows_have_ratios_to_their_first_way() -> None:
    row = speed.Row("x", {"a": 2.0, "b": 1.0}, "ms", "none")
    assert row.ratios() == {"a": 1.0, "b": 0.5}


def test_the_three_loops_do_the_same_work() -> None:
    """One step from equal weights: the bare loop, `fit` and torchdistill move alike."""
    pytest.importorskip("torchdistill", reason="needs torchdistill")
    torch.manual_seed(0)
    x, y = torch.randn(8, 1, 16, 16), torch.randint(0, 10, (8,))
    teacher, start = loops.small(8), loops.small(4)
    moved = {}
    for loop in (loops.bare_loop, loops.limbeck_loop, loops.torchdistill_loop):
        student = loops.small(4)
        student.load_state_dict(start.state_dict())
        assert loop(student, teacher, x, y, 8, 1) > 0
        moved[loop.__name__] = torch.cat([p.detach().flatten() for p in student.parameters()])
    before = torch.cat([p.detach().flatten() for p in start.parameters()])
    assert not torch.allclose(before, moved["bare_loop"])
    for name, after in moved.items():
        torch.testing.assert_close(after, moved["bare_loop"], msg=name)


def test_the_best_of_several_is_taken_in_turn() -> None:
    calls: list[str] = []

    def way(name: str, seconds: list[float]):
        def run() -> float:
            calls.append(name)
            return seconds.pop()

        return run

    assert speed.best({"a": way("a", [3, 1, 2]), "b": way("b", [5, 6, 4])}, 3) == {"a": 1, "b": 4}
    assert calls == ["a", "b"] * 3
