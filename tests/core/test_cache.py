import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.core import _table
from limbeck.core.cache import Cache, CacheWriter, fingerprint, probes
from limbeck.errors import Missing, UsageError

MADE = {"teacher": "abc", "length": 10}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(folder: Path, entries: dict[str, torch.Tensor], **settings) -> Path:
    """A whole table, written in three batches in a shuffled order."""
    samples = len(next(iter(entries.values())))
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(1))
    with CacheWriter(folder, MADE, samples, **settings) as writer:
        for index in order.tensor_split(3):
            writer.write(index, {name: value[index] for name, value in entries.items()})
        assert writer.left == 0
    return folder


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process; its exit status: 0, 1 after an exception, -9 when it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- what is written is what is read ---


def test_any_order_repeats_and_all_shards_at_once(tmp_path):
    logits, embedding = numbers(10, 3), numbers(10, 2, 2, seed=1)
    cache = Cache(filled(tmp_path / "c", {"logits": logits, "embedding": embedding}, shard=4))
    assert (cache.samples, cache.epochs, set(cache.entries)) == (10, 1, {"logits", "embedding"})
    assert cache.entries["embedding"] == (torch.float32, (2, 2), torch.float32)
    for index in ([9, 0, 4, 4, 3], [], [7], list(range(9, -1, -1))):
        rows = cache.rows(torch.tensor(index, dtype=torch.int64))
        assert torch.equal(rows["logits"], logits[index])
        assert torch.equal(rows["embedding"], embedding[index])
    assert torch.equal(cache.rows(torch.tensor([2], dtype=torch.int32))["logits"], logits[[2]])
    assert torch.equal(cache.rows([2, 1])["logits"], logits[[2, 1]])
    cache.verify()


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float32", "float16", "bfloat16", "int64", "int8", "uint8", "bool", "complex64"],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 2)])
def test_every_bit_of_every_dtype_comes_back(tmp_path, dtype, shape):
    value = (numbers(7, *shape) * 3).to(getattr(torch, dtype))
    if value.is_floating_point():
        value.view(-1)[:2] = torch.tensor([float("nan"), -float("inf")])
    back = Cache(filled(tmp_path / "c", {"e": value}, shard=2)).rows([6, 1, 0])["e"]
    assert back.dtype == value.dtype
    raw, expected = (v.contiguous().view(-1).view(torch.uint8) for v in (back, value[[6, 1, 0]]))
    assert torch.equal(raw, expected)


def test_bfloat16_lies_on_disk_as_its_sixteen_bits(tmp_path):
    value = numbers(5, 3).bfloat16()
    folder = filled(tmp_path / "c", {"e": value})
    bits = np.fromfile(folder / "e.rows", np.uint16).reshape(5, 3)
    float32 = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(float32, value.float().numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_takes_half_the_room_and_is_read_as_the_teacher_gave_it(tmp_path, dtype):
    logits, labels = numbers(10, 3), torch.arange(10)
    folder = filled(tmp_path / "c", {"logits": logits, "labels": labels}, dtype=dtype)
    assert (folder / "logits.rows").stat().st_size == 10 * 3 * 2
    rows = Cache(folder).rows([3, 9])
    assert rows["logits"].dtype == torch.float32
    assert torch.equal(rows["logits"], logits[[3, 9]].to(getattr(torch, dtype)).float())
    assert not torch.equal(rows["logits"], logits[[3, 9]])  # else this showed nothing
    assert rows["labels"].tolist() == [3, 9]  # whole numbers are not rounded


def test_a_number_too_large_for_half_precision_is_refused_and_infinity_is_not(tmp_path):
    with CacheWriter(tmp_path / "c", MADE, 2, dtype="float16") as writer:
        with pytest.raises(UsageError, match="'logits' holds 70000, too large for float16"):
            writer.write([0], {"logits": torch.tensor([[70000.0, -float("inf")]])})
        assert writer.missing().tolist() == [0, 1]
        writer.write([0, 1], {"logits": torch.tensor([[65504.0, -float("inf")], [0.0, 1.0]])})
    assert Cache(tmp_path / "c").rows([0])["logits"].tolist() == [[65504.0, -float("inf")]]


def test_what_is_read_is_the_callers_own(tmp_path):
    cache = Cache(filled(tmp_path / "c", {"e": numbers(4, 2)}))
    cache.rows([1])["e"].zero_()
    assert torch.equal(cache.rows([1])["e"], numbers(4, 2)[[1]])
    cache.verify()


def test_only_what_is_asked_for_is_read(tmp_path):
    cache = Cache(filled(tmp_path / "c", {"logits": numbers(4, 2), "mid": numbers(4, 2)}))
    os.remove(tmp_path / "c" / "mid.rows")
    assert list(cache.rows([1], names=("logits",))) == ["logits"]
    with pytest.raises(UsageError, match=r"mid\.rows: No such file or directory; write the cache"):
        cache.rows([1])
    with pytest.raises(Missing, match=r"no entry 'logit'; did you mean 'logits'\?"):
        cache.rows([1], names=("logit",))


def test_epochs_have_rows_of_their_own(tmp_path):
    value = numbers(3, 5, 2)
    with CacheWriter(tmp_path / "c", MADE, 5, shard=4, epochs=3) as writer:
        writer.write(range(5), {"e": value[2]}, epoch=2)
        writer.write([4, 0], {"e": value[1][[4, 0]]}, epoch=1)
        assert [writer.missing(e).tolist() for e in range(3)] == [[*range(5)], [1, 2, 3], []]
        writer.write([1, 2, 3], {"e": value[1][1:4]}, epoch=1)
        writer.write(range(5), {"e": value[0]})
        with pytest.raises(UsageError, match=r"epoch 3 was asked .* which is for 3 epochs"):
            writer.missing(3)
    cache = Cache(tmp_path / "c")
    for epoch in range(3):
        assert torch.equal(cache.rows([4, 0, 3], epoch=epoch)["e"], value[epoch][[4, 0, 3]])
    for epoch in (-1, 3):
        with pytest.raises(UsageError, match=f"epoch {epoch} was asked"):
            cache.rows([0], epoch=epoch)
    raw = np.fromfile(tmp_path / "c" / "e.rows", np.float32).reshape(15, 2)
    assert np.array_equal(raw, value.view(15, 2).numpy())  # row number: epoch * samples + index


def test_a_row_is_written_once(tmp_path):
    with CacheWriter(tmp_path / "c", MADE, 3) as writer:
        writer.write([1, 1], {"e": torch.tensor([1.0, 2.0])})
        writer.write([1, 2], {"e": torch.tensor([3.0, 4.0])})
        writer.write([1, 2], {"e": torch.tensor([5.0, 6.0])})
        assert writer.missing().tolist() == [0]
        writer.write([0, 1], {"e": torch.tensor([0.0, 7.0])})
    assert Cache(tmp_path / "c").rows([0, 1, 2])["e"].tolist() == [0.0, 1.0, 4.0]


def test_reading_changes_nothing_and_gives_no_warning(tmp_path):
    folder = filled(tmp_path / "c", {"e": numbers(10, 2)}, shard=3)

    def state():
        return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}

    before = state()
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o555)

    def read():
        torch.set_warn_always(True)  # else some are given once in the life of a process
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            cache = Cache(folder)
            assert torch.equal(cache.rows([7, 2])["e"], numbers(10, 2)[[7, 2]])
            cache.verify()
        assert seen == []

    try:
        cache = Cache(folder)  # two processes at once
        assert in_child(read) == 0
        assert torch.equal(cache.rows([7, 2])["e"], numbers(10, 2)[[7, 2]])
    finally:
        folder.chmod(0o755)
    assert state() == before


def test_a_worker_gets_the_folder_not_the_rows(tmp_path):
    cache = Cache(filled(tmp_path / "c", {"e": numbers(1000, 10)}))
    cache.rows([0])
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent).rows([999])["e"], numbers(1000, 10)[[999]])


# --- killed and resumed ---


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace", "ftruncate"])
def test_killed_at_any_call_of_the_system_every_whole_row_is_known_and_kept(
    tmp_path, monkeypatch, call
):
    """The child dies in its n-th call, a write half done; n goes up until it gets through."""
    value = numbers(9, 4)
    order = [7, 1, 2, 8, 0, 3, 5, 4, 6]
    real, kept = getattr(os, call), []
    for n in range(1000):
        folder, calls = tmp_path / str(n), [0]

        def dies(*given, n=n, calls=calls):
            if calls[0] == n:
                if call == "pwrite":
                    real(given[0], given[1][: len(given[1]) // 2], given[2])
                os.kill(os.getpid(), signal.SIGKILL)
            calls[0] += 1
            return real(*given)

        def work(n=n, folder=folder, dies=dies):
            monkeypatch.setattr(os, call, dies)
            with CacheWriter(folder, MADE, 9, shard=4) as writer:
                for index in (order[:3], order[3:6], order[6:]):
                    writer.write(index, {"a": value[index], "b": value[index, :1]})
                    with open(tmp_path / f"{n}.told", "a") as told:
                        print(*index, file=told)

        status = in_child(work)
        if status == 0:
            break
        assert status == -9
        told = tmp_path / f"{n}.told"
        told_rows = {int(i) for i in told.read_text().split()} if told.exists() else set()
        with CacheWriter(folder, MADE, 9, shard=4) as writer:
            missing = writer.missing()
            assert told_rows.isdisjoint(missing.tolist())  # what `write` returned from is there
            kept.append(9 - len(missing))
            if len(missing):
                with pytest.raises(UsageError, match=f"lacks {len(missing)} of its 9 rows; write"):
                    Cache(folder)
            other = torch.full((9, 4), 5.0)
            writer.write(range(9), {"a": other, "b": other[:, :1]})
        rows = Cache(folder).rows(range(9))
        expected = value.clone()
        expected[missing] = 5.0  # the second writer wrote these and no others
        assert torch.equal(rows["a"], expected)
        assert torch.equal(rows["b"], expected[:, :1])
        Cache(folder).verify()
    if call != "ftruncate":
        assert kept[0] == 0
        assert len(set(kept)) > 2  # it died early, midway and late
    assert kept == sorted(kept)


WRITER = """
import sys, torch
from limbeck.core.cache import CacheWriter
torch.set_num_threads(1)
value = torch.arange(20000.).view(2000, 10)
order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
with CacheWriter(sys.argv[1], {"teacher": "abc"}, 2000, shard=64) as writer:
    for index in order.split(5):
        writer.write(index, {"e": value[index]})
        print(*index.tolist(), flush=True)
"""


def test_killed_by_another_process_it_goes_on_with_the_missing_rows_only(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "c")],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(150)]
    with pytest.raises(UsageError, match=rf"written by another process \({process.pid}\)"):
        CacheWriter(tmp_path / "c", {"teacher": "abc"}, 2000)
    process.kill()
    told += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    written = {int(i) for line in told if line.endswith("\n") for i in line.split()}
    value = torch.arange(20000.0).view(2000, 10)
    with CacheWriter(tmp_path / "c", {"teacher": "abc"}, 2000, shard=64) as writer:
        missing = writer.missing()
        assert writer.left == len(missing) > 0
        assert written.isdisjoint(missing.tolist())
        assert len(written) + len(missing) >= 2000 - 5  # one batch may be whole but not told
        writer.write(missing, {"e": -value[missing] - 1})
    rows = Cache(tmp_path / "c").rows(range(2000))["e"]
    value[missing] = -value[missing] - 1
    assert torch.equal(rows, value)


def test_a_row_whose_checksum_is_nought_is_no_missing_row(tmp_path):
    row = torch.tensor([[0x9D, 0x0A, 0xD9, 0x6D]], dtype=torch.uint8)
    assert zlib.crc32(row.numpy()) == 0
    with CacheWriter(tmp_path / "c", MADE, 3) as writer:
        writer.write([1], {"e": row})
    with CacheWriter(tmp_path / "c", MADE, 3) as writer:
        assert writer.missing().tolist() == [0, 2]


def test_a_shard_is_done_only_when_its_rows_are_on_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda f: (synced.append(Path(os.readlink(f"/proc/self/fd/{f}"))), fsync(f))
    )
    folder = tmp_path / "c"
    with CacheWriter(folder, MADE, 6, shard=3) as writer:
        writer.write([0, 1], {"e": numbers(2, 2)})
        assert _table.Table.load(folder).done == {}
        synced.clear()
        writer.write([2, 3], {"e": numbers(2, 2)})
        assert list(_table.Table.load(folder).done) == ["0"]
    assert synced[0].name == "e.rows"
    assert synced[-2].name.startswith(".cache.json")
    assert synced[-1] == folder


def test_a_full_disk_while_writing_loses_nothing(tmp_path, monkeypatch):
    value, pwrite, room = numbers(10, 3), os.pwrite, [5]

    def fills(handle, data, place):
        room[0] -= 1
        if room[0] < 0:
            pwrite(handle, data[:5], place)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(handle, data, place)

    monkeypatch.setattr(os, "pwrite", fills)
    with CacheWriter(tmp_path / "c", MADE, 10, shard=4) as writer:
        writer.write(range(5), {"e": value[:5]})
        room[0] = 0
        with pytest.raises(UsageError, match="No space left on device; 5 of 10 rows are missing"):
            writer.write(range(4, 9), {"e": value[4:9]})
        assert writer.missing().tolist() == [5, 6, 7, 8, 9]
    room[0] = 1000
    with CacheWriter(tmp_path / "c", MADE, 10, shard=4) as writer:
        assert writer.missing().tolist() == [5, 6, 7, 8, 9]
        writer.write(range(5, 10), {"e": value[5:]})
    assert torch.equal(Cache(tmp_path / "c").rows(range(10))["e"], value)


def test_a_file_larger_than_the_system_allows_is_one_sentence(tmp_path):
    def work():
        with CacheWriter(tmp_path / "c", MADE, 100) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
            with pytest.raises(UsageError, match=r"could not write .*e\.rows: File too large"):
                writer.write([0], {"e": torch.zeros(1, 1000)})
            writer.write([0], {"e": torch.zeros(1, 10)})  # nothing was fixed by what failed
            assert writer.left == 99

    assert in_child(work) == 0


# --- damage ---


@pytest.mark.parametrize(("bad", "good"), ["ab", "ba"])
def test_a_flipped_byte_is_found_where_it_is_and_mended(tmp_path, bad, good):
    value = numbers(10, 3)
    folder = filled(tmp_path / "c", {"a": value, "b": value}, shard=4)
    flip(folder / f"{bad}.rows", 5 * 12 + 7)  # row 5, in the second shard
    sentence = rf"{folder}/{bad}\.rows is damaged in rows 4 to 7; write the cache again"
    cache = Cache(folder)
    assert torch.equal(cache.rows([0, 9])[bad], value[[0, 9]])  # other shards
    assert torch.equal(cache.rows([4], names=[good])[good], value[[4]])  # the other entry
    for _ in range(2):
        with pytest.raises(UsageError, match=sentence):
            cache.rows([9, 4])
        with pytest.raises(UsageError, match=sentence):
            cache.verify()
    with CacheWriter(folder, MADE, 10) as writer:
        assert writer.missing().tolist() == [5]
        with pytest.raises(UsageError, match="lacks 1 of its 10 rows"):
            Cache(folder)
        writer.write([5], {"a": value[[5]], "b": value[[5]]})
    Cache(folder).verify()
    assert torch.equal(Cache(folder).rows(range(10))[bad], value)


def test_every_byte_of_the_rows_is_guarded(tmp_path):
    folder = filled(tmp_path / "c", {"a": numbers(5, 2), "b": torch.arange(5) > 2}, shard=2)
    for name, size in (("a.rows", 40), ("b.rows", 5)):
        assert (folder / name).stat().st_size == size
        for place in range(size):
            flip(folder / name, place)
            with pytest.raises(UsageError, match=f"{name} is damaged in rows"):
                Cache(folder).rows(range(5))
            flip(folder / name, place)
    Cache(folder).verify()


def test_every_byte_of_the_manifest_is_guarded(tmp_path):
    folder = filled(tmp_path / "c", {"a": numbers(3, 2)}, shard=2)
    size = (folder / "cache.json").stat().st_size
    for place in range(size):
        flip(folder / "cache.json", place)
        for opens in (lambda: Cache(folder), lambda: CacheWriter(folder, MADE, 3)):
            with pytest.raises(UsageError, match=r"cache\.json is damaged"):
                opens()
        flip(folder / "cache.json", place)
    for cut in (0, 1, size // 2, size - 2):
        whole = (folder / "cache.json").read_bytes()
        (folder / "cache.json").write_bytes(whole[:cut])
        with pytest.raises(UsageError, match=r"cache\.json is damaged"):
            Cache(folder)
        (folder / "cache.json").write_bytes(whole)
    Cache(folder).verify()


@pytest.mark.parametrize("size", [0, 1, 64, 119, 121])
def test_a_file_of_another_length_is_refused_and_mended(tmp_path, size):
    value = numbers(10, 3)
    folder = filled(tmp_path / "c", {"e": value}, shard=4)
    os.truncate(folder / "e.rows", size)
    for ask in (lambda: Cache(folder).rows([0]), lambda: Cache(folder).verify()):
        with pytest.raises(UsageError, match=rf"e\.rows is damaged: {size} bytes where 120 belong"):
            ask()
    with CacheWriter(folder, MADE, 10) as writer:
        missing = writer.missing()
        assert missing.tolist() == list(range(size // 12, 10))
        writer.write(missing, {"e": value[missing]})
    assert torch.equal(Cache(folder).rows(range(10))["e"], value)


def test_lost_row_checksums_cost_only_rows_of_unfinished_shards(tmp_path):
    value = numbers(10, 3)
    with CacheWriter(tmp_path / "c", MADE, 10, shard=4) as writer:
        writer.write(range(6), {"e": value[:6]})
    os.remove(tmp_path / "c" / "checksums")
    with pytest.raises(UsageError, match="lacks 6 of its 10 rows"):
        Cache(tmp_path / "c")
    with CacheWriter(tmp_path / "c", MADE, 10) as writer:
        assert writer.missing().tolist() == list(range(4, 10))


def test_each_shard_is_compared_once(tmp_path, monkeypatch):
    cache = Cache(filled(tmp_path / "c", {"a": numbers(10, 3), "b": numbers(10, 3)}, shard=4))
    compared, real = [], _table.shard_sum

    def counted(data, span):
        compared.append(span.start)
        return real(data, span)

    monkeypatch.setattr("limbeck.core.cache.shard_sum", counted)
    cache.rows([9, 8], names=["a"])
    assert compared == [8]
    cache.rows([9, 8, 1])
    assert sorted(compared) == [0, 0, 8, 8]
    cache.rows([0, 1, 9])
    assert len(compared) == 4
    cache.rows([4])
    cache.rows(range(10))
    assert len(compared) == 6
    cache.verify()
    assert len(compared) == 12


# --- what it was made from ---


def plain_reader(x):
    return x


def test_a_fingerprint_names_the_part_that_differs(tmp_path):
    teacher = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    samples = [numbers(3, seed=i) for i in range(16)]
    made = fingerprint(teacher, 50, samples, plain_reader)
    assert set(made) == {"teacher", "length", "samples", "reader"}
    assert (made["length"], made["reader"]) == (50, "plain_reader")
    with CacheWriter(tmp_path / "c", made, 2) as writer:
        writer.write([0, 1], {"e": torch.zeros(2)})
    cache = Cache(tmp_path / "c")
    cache.check(fingerprint(teacher, 50, [s.clone() for s in samples], plain_reader))
    cache.check(fingerprint(None, 50, samples, plain_reader))  # no teacher at hand
    cache.check({})

    def refuses(part, then, now, made):
        expected = (
            rf"c is stale: it differs in its {part}[^(]* \({then} then, {now} now\); write a new"
        )
        with pytest.raises(UsageError, match=expected):
            cache.check(made)
        with pytest.raises(UsageError, match=rf"holds another cache, .* its {part} \("):
            CacheWriter(tmp_path / "c", {**cache._table.made, **made}, 2)

    refuses("length", 50, 51, fingerprint(teacher, 51, samples, plain_reader))
    refuses("reader", "plain_reader", "photo", fingerprint(teacher, 50, samples, "photo"))
    samples[15] = torch.nextafter(samples[15], torch.tensor(9.0))
    refuses("samples", r"\w{12}", r"\w{12}", fingerprint(teacher, 50, samples, plain_reader))
    refuses("head", "None", "7", {"head": 7})
    refuses("reader", "plain_reader", "None", {"reader": None})
    module_reader = fingerprint(None, 1, [], nn.Linear(1, 1))["reader"]
    refuses("reader", "plain_reader", "Linear", {"reader": module_reader})
    with torch.no_grad():
        teacher[1].running_mean[0] = 1e-30
    changed = fingerprint(teacher, 50, samples, "x")
    refuses("teacher", r"\w{12}", r"\w{12}", {"teacher": changed["teacher"]})
    with pytest.raises(UsageError, match=r"its teacher's .* and its samples.* and its read"):
        cache.check(changed)


def test_samples_may_be_nested_and_each_part_counts():
    def made(sample):
        return fingerprint(None, 1, [sample])["samples"]

    base = {"ids": torch.tensor([1, 2]), "more": [[1, 2], "text", torch.zeros(2)], "z": 1.0}
    others = [
        {**base, "ids": torch.tensor([1, 3])},
        {**base, "ids": torch.tensor([1, 2], dtype=torch.int32)},
        {**base, "more": [[1, 3], "text", torch.zeros(2)]},
        {**base, "more": [[1, 2], "Text", torch.zeros(2)]},
        {**base, "more": [[1, 2], "text", torch.ones(2)]},
        {**base, "z": 2.0},
        {k: base[k] for k in ("ids", "more")},
    ]
    assert len({made(sample) for sample in [base, *others]}) == 8
    assert made(dict(reversed(base.items()))) == made(base)
    with pytest.raises(UsageError, match="a sample holds object, by which it cannot be known"):
        made({"x": object()})


def test_sixteen_samples_are_fixed_and_reach_both_ends():
    assert probes(0) == []
    assert probes(1) == [0]
    assert probes(16) == list(range(16))
    assert probes(31) == list(range(0, 31, 2))
    for length in (2, 15, 17, 1000, 1281167):
        numbers = probes(length)
        assert len(numbers) == min(length, 16)
        assert (numbers[0], numbers[-1]) == (0, length - 1)
    assert probes(1281167)[:2] == [0, 85411]


# --- bad input: one sentence ---


def test_what_cannot_be_written(tmp_path):
    with CacheWriter(tmp_path / "c", MADE, 5) as writer:
        good = {"logits": torch.zeros(2, 3)}
        with pytest.raises(UsageError, match="was given no entries"):
            writer.write([0, 1], {})
        with pytest.raises(UsageError, match=r"an entry called '\.\./x'"):
            writer.write([0, 1], {"../x": torch.zeros(2, 3)})
        with pytest.raises(UsageError, match="holds tensors, but entry 'blocks' is list"):
            writer.write([0, 1], {"blocks": [torch.zeros(2, 3)]})
        for shape in ((3, 3), (), (2, 0)):
            with pytest.raises(UsageError, match=r"has shape \(.*\), where one row .* of 2 sample"):
                writer.write([0, 1], {"logits": torch.zeros(shape)})
        writer.write([], {})
        writer.write([0, 1], good)
        for bad, shown in (
            ({"logits": torch.zeros(2, 4)}, r"logits float32 \(B, 4\)"),
            ({"logits": torch.zeros(2, 3).half()}, r"logits float16 \(B, 3\)"),
            ({"mid": torch.zeros(2)}, r"mid float32 \(B\)"),
            ({**good, "mid": torch.zeros(2)}, r"logits float32 \(B, 3\) and mid float32 \(B\)"),
        ):
            expected = rf"c is of logits float32 \(B, 3\), but was given {shown}$"
            with pytest.raises(UsageError, match=expected):
                writer.write([2, 3], bad)
        assert writer.missing().tolist() == [2, 3, 4]
    with pytest.raises(UsageError, match="was closed"):
        writer.write([2, 3], good)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ([0, 5], "sample 5 was asked of the cache in .*c, which is for 5 samples, numbered from 0"),
        ([-1, 2], "sample -1 was asked"),
        ([0.5], r"whole numbers, not for float32 of shape \(1,\)"),
        ([True], "not for bool"),
        ([[0]], r"of shape \(1, 1\)"),
        (3, r"of shape \(\)"),
    ],
)
def test_sample_numbers_that_are_none(tmp_path, index, sentence):
    cache = Cache(filled(tmp_path / "c", {"e": numbers(5, 2)}))
    with pytest.raises(UsageError, match=sentence):
        cache.rows(index)
    with (
        CacheWriter(tmp_path / "c", MADE, 5) as writer,
        pytest.raises(UsageError, match=sentence),
    ):
        writer.write(index, {"e": numbers(1, 2)})


def test_a_writer_takes_no_folder_of_others_and_no_table_of_another_size(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="mine holds other files; name a new or an empty folder"):
        CacheWriter(tmp_path / "mine", MADE, 5)
    with pytest.raises(UsageError, match="File exists"):
        CacheWriter(tmp_path / "mine" / "thesis.tex", MADE, 5)
    CacheWriter(tmp_path / "c", MADE, 5).close()
    for there in ({"samples": 6}, {"epochs": 2}, {"dtype": "float16"}):
        asked = {"samples": 5, "epochs": 1, "dtype": None, **there}
        expected = r"differs in its (number of|stored) \w+ \("
        with pytest.raises(UsageError, match=expected) as kept:
            CacheWriter(tmp_path / "c", MADE, **asked)
        CacheWriter(tmp_path / "c", MADE, 5).close()  # one that was refused keeps nobody out
        assert kept.tb is not None
    for wrong in ({"samples": 0}, {"samples": 1, "epochs": 0}, {"samples": 1, "shard": 0}):
        with pytest.raises(UsageError, match="no cache has"):
            CacheWriter(tmp_path / "d", MADE, **wrong)
    with pytest.raises(UsageError, match="float32, float16 or bfloat16, not 'int8'"):
        CacheWriter(tmp_path / "d", MADE, 1, dtype="int8")
    assert not (tmp_path / "d").exists()
    CacheWriter(tmp_path / "c", MADE, 5, shard=7).close()  # the table keeps its own shards


def test_of_two_writers_the_second_is_refused(tmp_path):
    first = CacheWriter(tmp_path / "c", MADE, 2)
    with pytest.raises(UsageError, match=rf"another process \({os.getpid()}\)"):
        CacheWriter(tmp_path / "c", MADE, 2)
    first.write([0, 1], {"e": numbers(2, 2)})  # the first is not disturbed
    assert torch.equal(Cache(tmp_path / "c").rows([1])["e"], numbers(2, 2)[[1]])
    first.close()
    CacheWriter(tmp_path / "c", MADE, 2).close()
    forgotten = CacheWriter(tmp_path / "c", MADE, 2)
    del forgotten
    CacheWriter(tmp_path / "c", MADE, 2).close()


def test_a_cache_that_is_not_there_or_not_whole(tmp_path):
    for folder in (tmp_path, tmp_path / "no"):
        with pytest.raises(Missing, match=f"there is no teacher cache in {folder}; write one"):
            Cache(folder)
    with CacheWriter(tmp_path / "c", MADE, 5, shard=2) as writer:
        with pytest.raises(UsageError, match="lacks 5 of its 5 rows"):
            Cache(tmp_path / "c")
        writer.write([0, 1, 4], {"e": numbers(3)})
        with pytest.raises(UsageError, match="c lacks 2 of its 5 rows; write the cache again into"):
            Cache(tmp_path / "c")


def test_equal_tables_have_equal_digests_and_others_have_not(tmp_path):
    value = numbers(5, 2)
    one, two = (Cache(filled(tmp_path / name, {"e": value})) for name in "ab")
    assert one.digest == two.digest
    value[4, 1] += 1e-6
    assert Cache(filled(tmp_path / "d", {"e": value})).digest != one.digest
