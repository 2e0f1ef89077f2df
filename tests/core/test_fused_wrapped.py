"""The fused road in the wrapped `Step`: two processes under DDP, torch's fully_shard on one or two.

The plain road is one process that accumulates two micro-batches, with logits made whole.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.xdist_group("fused_wrapped")

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck import Budget, Optimiser, Task, fit, make
from limbeck.core.files import digest_tensors
from limbeck.core.losses import fused
from limbeck.core.run import Run
from limbeck.core.text.facts import Text
from limbeck.core.text.view import Causal
from limbeck.errors import UsageError

place, ways = sys.argv[1], sys.argv[2:]
torch.set_num_threads(1)
V = 40
world = int(os.environ.get("WORLD_SIZE", "1"))
sweeps = []
sweep = fused._sweep
fused._sweep = lambda *a: sweeps.append(1) or sweep(*a)


def model(layers, seed, tied):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=V + 3, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied,
        max_position_embeddings=32, eos_token_id=1, pad_token_id=0, bos_token_id=None,
        initializer_range=0.3, attention_dropout=0.0))


def sharded(student, how):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    if "layers" in how:
        for layer in student.model.layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(student, mesh=mesh, reshard_after_forward="freed" in how)
    assert all(hasattr(p, "device_mesh") for p in student.parameters())


def trained(way):
    spec, _, how = way.partition("/")
    student = model(2, 0, "tied" in how)
    if "shard" in how:
        sharded(student, how)
    ids = torch.randint(2, V, (16, 12), generator=torch.Generator().manual_seed(0))
    y = ids.clone()
    y[:, :4] = -100
    y[::3, 6:] = -100  # so that micro-batches differ in how many places they want
    linear = "plain" not in how
    readers = {"student": Causal(V, linear=linear), "teacher": Causal(V, linear=linear)}
    data = {"text": Text(V, 12, (1,), 0)}
    x = {"ids": ids, "mask": torch.ones_like(ids)}
    pieces = (4 if "twice" in how else 2) // world
    budget = Budget(steps=4, batch=8, accumulate=pieces, optimiser=Optimiser("sgd", 0.1))
    task = Task(model(2, 1, False).eval(), lambda: student, {"x": x, "y": y}, budget=budget,
                readers=readers, data=data, classes=V)
    gradients, began = {}, len(sweeps)

    def noted(fitter):
        move = fitter.r.devices.move

        def first(moves, *rest):
            for n, p in moves.params.items():
                whole = getattr(p.grad, "full_tensor", lambda p=p: p.grad)()
                gradients.setdefault(n.removeprefix("student."), whole.detach().clone())
            return move(moves, *rest)

        fitter.r.devices.move = first

    folder = Path(f"{place}-kept") if "kept" in how else None
    with Run(task, folder=folder, device="cpu", on_fit=noted):
        method = make(spec)
        try:
            result = method.run(task)
        except UsageError as error:
            return str(error)
    assert (len(sweeps) > began) == linear, "the road is not the one that was asked for"
    values = [sum(row["terms"].values()) for row in result.log]
    weights = {n: getattr(p, "full_tensor", lambda p=p: p)().detach()
               for n, p in student.named_parameters()}
    flat = {n: g.flatten().tolist() for n, g in gradients.items()}
    return {"values": values, "gradients": flat, "weights": digest_tensors(weights)}


if any("shard" in way for way in ways) and world > 1:
    dist.init_process_group("gloo")
elif any("shard" in way for way in ways):
    dist.init_process_group("gloo", f"file://{place}.meet", rank=0, world_size=1)
told = {way: trained(way) for way in ways}
told["processes"] = dist.get_world_size() if dist.is_initialized() else 1
with open(f"{place}-{os.environ.get('RANK', '0')}.json", "w") as file:
    json.dump(told, file)
if dist.is_initialized():
    dist.destroy_process_group()
"""
SPECS = ["gkd(own=0.0)", "gkd(own=0.0,divergence='reverse_kl',per='token')"]
WRITES = "gkd(own=1.0,new=4,least=2)"


def asked(folder: Path, name: str, ways: list[str], processes: int = 1) -> list[dict[str, Any]]:
    """What each of some processes says of each way."""
    script = folder / "script.py"
    script.write_text(SCRIPT, "utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else [])]
    done = subprocess.run(
        [*command, str(script), str(folder / name), *ways],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    files = [folder / f"{name}-{rank}.json" for rank in range(processes)]
    return [json.loads(file.read_text("utf-8")) for file in files]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process that accumulates: with logits made whole, and fused."""
    ways = [f"{spec}/{how}" for spec in SPECS for how in ("plain", "", "plain,tied", "tied")]
    ways += [f"{WRITES}/", f"{SPECS[0]}/twice"]
    return asked(tmp_path_factory.mktemp("plain"), "one", ways)[0]


def near(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got["values"] == pytest.approx(want["values"], rel=1e-5)
    assert got["gradients"].keys() == want["gradients"].keys()
    for name, gradient in want["gradients"].items():
        assert any(gradient), name
        assert got["gradients"][name] == pytest.approx(gradient, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("tied", ["", "tied"])
def test_in_one_process_the_fused_road_is_the_plain_one(plain, spec, tied) -> None:
    near(plain[f"{spec}/{tied}"], plain[f"{spec}/{','.join(filter(None, ['plain', tied]))}"])


def test_two_processes_give_the_bits_of_one_that_accumulates(plain, tmp_path) -> None:
    ways = [f"{spec}/{tied}" for spec in SPECS for tied in ("", "tied")] + [f"{WRITES}/"]
    both = asked(tmp_path, "two", ways, processes=2)
    assert [told["processes"] for told in both] == [2, 2]
    for way in ways:
        assert both[0][way] == both[1][way] == plain[way], way


def test_a_sharded_student_trains_alike_its_head_gathered(plain, tmp_path) -> None:
    hows = ["shard", "shard,layers", "shard,layers,freed", "shard,layers,tied", "shard,freed,tied"]
    ways = [f"{spec}/{how}" for spec in SPECS for how in hows] + [f"{WRITES}/shard,layers"]
    told = asked(tmp_path, "sharded", ways)[0]
    for way in ways:
        spec, how = way.split("/")
        assert told[way] == plain[f"{spec}/{'tied' if 'tied' in how else ''}"], way


def test_two_processes_that_shard_give_the_bits_of_one(plain, tmp_path) -> None:
    """Each holds half of every parameter; torch's wrapper gathers and reduces them."""
    hows = ["shard,layers", "shard,layers,freed,tied"]
    ways = [f"{spec}/{how}" for spec in SPECS for how in hows] + [f"{WRITES}/shard,layers"]
    more = [f"{SPECS[0]}/shard,twice", f"{SPECS[0]}/shard,kept"]
    both = asked(tmp_path, "two", [*ways, *more], processes=2)
    assert [told["processes"] for told in both] == [2, 2]
    assert both[0] == both[1]
    for way in ways:
        spec, how = way.split("/")
        assert both[0][way] == plain[f"{spec}/{'tied' if 'tied' in how else ''}"], way
    near(both[0][more[0]], plain[f"{SPECS[0]}/twice"])  # each micro-batch is reduced by itself
    assert "leave the folder (out) away" in both[0][more[1]]
