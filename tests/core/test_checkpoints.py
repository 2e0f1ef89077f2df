"""Checkpoints: whole or not there, checked, tied tensors once."""

from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.core import checkpoints
from limbeck.errors import Missing, UsageError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(50, 40), nn.Linear(40, 50, bias=False)
        self.out.weight = self.embed.weight


def test_tensors_and_json_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 2).bfloat16(),
        "long": torch.arange(5),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "turned": torch.randn(4, 3).T,
        "bool": torch.tensor([True, False]),
    }
    checkpoints.save(tmp_path / "deep/a.safetensors", tensors, {"step": 3, "log": [1.5, None]})
    back, meta = checkpoints.load(tmp_path / "deep/a.safetensors")
    assert meta == {"step": 3, "log": [1.5, None]}
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_a_tied_tensor_is_stored_once_and_loads_into_both_names(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = Tied()
    checkpoints.save(path, model.state_dict())
    size = model.embed.weight.numel() * 4
    assert size < path.stat().st_size < 1.5 * size
    other = Tied()
    checkpoints.into(other, checkpoints.load(path)[0])
    assert torch.equal(other.out.weight, model.embed.weight)
    assert other.out.weight is other.embed.weight


def test_slices_of_one_tensor_are_stored_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    checkpoints.save(tmp_path / "a", {"all": whole, "row": whole[1], "column": whole[:, 2]})
    back, _ = checkpoints.load(tmp_path / "a")
    assert torch.equal(back["row"], whole[1])
    assert torch.equal(back["column"], whole[:, 2])


def test_equal_states_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(0)
        checkpoints.save(tmp_path / name, nn.Linear(3, 2).state_dict(), {"x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("at", [-1, -9, 30])
def test_a_flipped_bit_is_found(tmp_path: Path, at: int) -> None:
    path = tmp_path / "a"
    checkpoints.save(path, {"w": torch.ones(8)})
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is damaged"):
        checkpoints.load(path)


def test_other_files_and_no_file_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "junk").write_bytes(b"\x93NUMPY")
    save_file({"w": torch.ones(1)}, tmp_path / "foreign")
    for name in ("junk", "foreign"):
        with pytest.raises(UsageError, match="damaged or not limbeck's"):
            checkpoints.load(tmp_path / name)
    with pytest.raises(Missing, match="there is no checkpoint"):
        checkpoints.load(tmp_path / "none")


def test_a_state_that_does_not_fit_is_named() -> None:
    with pytest.raises(UsageError, match="the stored state does not fit Linear"):
        checkpoints.into(nn.Linear(3, 2), {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)})


def test_nested_values_are_packed_and_unpacked() -> None:
    value = {"a": [1, 2.5, (None, "x")], "t": torch.arange(3), "d": {"deep": [torch.ones(1)]}}
    tensors: dict[str, torch.Tensor] = {}
    packed = checkpoints.pack(value, tensors)
    assert len(tensors) == 2
    back = checkpoints.unpack(packed, tensors)
    assert back["a"] == [1, 2.5, (None, "x")]
    assert torch.equal(back["t"], value["t"])  # type: ignore[arg-type]
    assert torch.equal(back["d"]["deep"][0], torch.ones(1))
    with pytest.raises(UsageError, match=r"a stage.s result holds a Linear; .*its state_dict"):
        checkpoints.pack([nn.Linear(1, 1)], {})
    with pytest.raises(UsageError, match="keys that are not strings"):
        checkpoints.pack({1: 2}, {})
