import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.core.files import (
    Lock,
    digest_tensors,
    map_tensor,
    put_rows,
    read_json,
    sweep,
    write_atomic,
    write_json,
)
from limbeck.errors import Missing, UsageError


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


# --- writing ---


@pytest.mark.parametrize("content", [b"new", lambda part: part.write_bytes(b"new")])
def test_a_file_is_written_and_replaced(tmp_path, content):
    path = tmp_path / "f"
    write_atomic(path, content)
    assert path.read_bytes() == b"new"
    path.write_bytes(b"something old and longer")
    write_atomic(str(path), content)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["f"]


def test_permissions_follow_the_umask_or_what_was_asked(tmp_path):
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "open", b"")
        write_atomic(tmp_path / "mine", b"", mode=0o600)
        # safetensors makes a file of its own, readable by nobody else
        write_atomic(tmp_path / "tensors", lambda part: save_file({"a": torch.ones(1)}, part))
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert modes == {"open": 0o644, "mine": 0o600, "tensors": 0o644}
    assert load_file(tmp_path / "tensors")["a"].tolist() == [1.0]


def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    seen = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(handle):
        seen.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def traced_replace(a, b):
        assert Path(a).read_bytes() == b"new"
        seen.append(("replace", str(a), str(b)))
        replace(a, b)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    write_atomic(tmp_path / "f", b"new")
    part = seen[0][1]
    assert Path(part).parent == tmp_path
    assert seen == [
        ("fsync", part),
        ("replace", part, str(tmp_path / "f")),
        ("fsync", str(tmp_path)),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"x" * 100_000,
        lambda part: part.write_bytes(b"x" * 100_000),
        lambda part: save_file({"a": torch.zeros(25_000)}, part),
    ],
    ids=["bytes", "writer", "safetensors"],
)
def test_a_full_disk_is_one_sentence_and_the_old_file_stays_whole(tmp_path, content):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with pytest.raises(UsageError) as caught:
            write_atomic(path, content)
        sentence = str(caught.value)
        assert sentence.startswith(f"could not write {path}: ")
        assert "File too large" in sentence
        assert "\n" not in sentence

    assert in_child(work) == 0
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_an_error_of_the_system_at_any_step_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fails(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(UsageError, match="No space left on device; what was there before is"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_that_is_not_there_and_a_folder_in_the_files_place(tmp_path):
    with pytest.raises(UsageError, match="No such file or directory"):
        write_atomic(tmp_path / "no" / "f", b"")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        write_atomic(tmp_path / "taken", b"")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_writers_own_mistake_is_not_dressed_up(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fails(part):
        part.write_bytes(b"half")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_atomic(path, fails)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_killed_while_writing_the_old_file_is_whole_and_the_rest_can_be_swept(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def work():
        def dies(part):
            part.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        write_atomic(path, dies)

    assert in_child(work) == -9
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2  # else the next line shows nothing
    (tmp_path / ".mine").write_bytes(b"")
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".mine", "f"]


# --- JSON ---


def test_json_comes_back(tmp_path):
    value = {"größe": [1, 2.5, None, True, "a\nb"], "nested": {"<": "\udc80"}}
    write_json(tmp_path / "f", value)
    assert read_json(tmp_path / "f") == value
    assert "größe" in (tmp_path / "f").read_text("utf-8")  # people read these files too


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_word_for_some_numbers(tmp_path, number):
    write_json(tmp_path / "f", 1)
    with pytest.raises(UsageError, match="give None instead"):
        write_json(tmp_path / "f", {"a": number})
    assert read_json(tmp_path / "f") == 1


@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": 1', b"\x80\x00\xff", b"[" * 100_000, b"1" * 10_000, b"{'a': 1}"],
    ids=["empty", "cut", "binary", "deep", "long number", "not JSON"],
)
def test_damaged_json_is_one_sentence(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_json(tmp_path / "f")
    assert str(caught.value).startswith(f"{tmp_path / 'f'} is damaged or is not JSON (")
    assert "\n" not in str(caught.value)


def test_json_that_is_not_there(tmp_path):
    with pytest.raises(Missing, match="there is no file"):
        read_json(tmp_path / "f")
    with pytest.raises(UsageError, match=r"could not read .*: Is a directory$"):
        read_json(tmp_path)


# --- digests ---


def test_a_digest_is_what_it_says():
    a, b = torch.tensor([[1.5, -2.0]]), torch.tensor(7)
    expected = hashlib.blake2b(digest_size=16)
    expected.update(b"('a', 'torch.float32', (1, 2))" + np.array([1.5, -2.0], "<f4").tobytes())
    expected.update(b"('b', 'torch.int64', ())" + np.array(7, "<i8").tobytes())
    assert digest_tensors({"b": b, "a": a}) == expected.hexdigest()
    assert digest_tensors({"a": a, "b": b}) == expected.hexdigest()


def test_a_digest_sees_values_not_layout():
    a = torch.arange(6.0).view(2, 3)
    assert digest_tensors({"a": a.T.contiguous().T}) == digest_tensors({"a": a})
    assert digest_tensors({"a": torch.zeros(2, 9)[:, ::3] + a}) == digest_tensors({"a": a})
    assert digest_tensors({"a": a.requires_grad_()}) == digest_tensors({"a": a.detach()})


def test_a_digest_tells_all_apart():
    kinds = {
        "one": {"a": torch.zeros(4)},
        "name": {"b": torch.zeros(4)},
        "shape": {"a": torch.zeros(2, 2)},
        "dtype of same bytes": {"a": torch.zeros(4, dtype=torch.int32)},
        "half": {"a": torch.zeros(4, dtype=torch.float16)},
        "bfloat16": {"a": torch.zeros(4, dtype=torch.bfloat16)},
        "sign of zero": {"a": torch.tensor([0.0, 0.0, 0.0, -0.0])},
        "smallest step": {"a": torch.tensor([0.0, 0.0, 0.0, 1e-45])},
        "bool": {"a": torch.zeros(4, dtype=torch.bool)},
        "complex": {"a": torch.zeros(4, dtype=torch.complex64)},
        "scalar": {"a": torch.tensor(0.0)},
        "empty": {"a": torch.zeros(0)},
        "emptier": {"a": torch.zeros(0, 3)},
        "none": {},
        "two": {"a": torch.zeros(2), "b": torch.zeros(2)},
    }
    digests = {digest_tensors(named) for named in kinds.values()}
    assert len(digests) == len(kinds)
    assert all(len(d) == 32 and int(d, 16) >= 0 for d in digests)


def test_a_digest_sees_every_bit_of_bfloat16():
    base = torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16()
    digests = {digest_tensors({"a": base})}
    for bit in range(80):
        other = base.clone()
        other.view(torch.uint8)[bit // 8] ^= 1 << bit % 8
        digests.add(digest_tensors({"a": other}))
    assert len(digests) == 81


# --- raw rows ---


def test_rows_are_put_in_their_places_by_few_calls(tmp_path, monkeypatch):
    values = np.arange(1, 13, dtype=np.uint8).reshape(6, 2)
    calls = []
    pwrite = os.pwrite

    def short(handle, data, place):  # a system call may write less than it was given
        calls.append(place)
        return pwrite(handle, data[:3], place)

    handle = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(handle, 20)
    monkeypatch.setattr(os, "pwrite", short)
    put_rows(handle, values, np.array([0, 2, 3, 4, 8, 9]))
    os.close(handle)
    assert calls == [0, 4, 7, 16, 19]
    rows = [[1, 2], [0, 0], [3, 4], [5, 6], [7, 8], [0, 0], [0, 0], [0, 0], [9, 10], [11, 12]]
    assert map_tensor(tmp_path / "f", (10, 2), torch.uint8).tolist() == rows


def test_a_file_larger_than_memory_is_mapped(tmp_path):
    rows = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4096
    with open(tmp_path / "f", "wb") as file:
        file.truncate(rows * 4096)
        file.seek((rows - 1) * 4096)
        file.write(np.float32(2.5).tobytes())
    mapped = map_tensor(tmp_path / "f", (rows, 1024), torch.float32)
    assert mapped[[0, rows - 1], :2].tolist() == [[0.0, 0.0], [2.5, 0.0]]


def test_a_file_of_another_length_is_not_mapped(tmp_path):
    (tmp_path / "f").write_bytes(bytes(15))
    with pytest.raises(UsageError, match="f is damaged: 15 bytes where 16 belong"):
        map_tensor(tmp_path / "f", (4,), torch.float32)
    with pytest.raises(UsageError, match=r"could not read .*g: No such file or directory"):
        map_tensor(tmp_path / "g", (4,), torch.float32)


# --- the lock ---


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path):
    first = Lock(tmp_path / "lock")
    with pytest.raises(UsageError, match=rf"{tmp_path} is being written .*\({os.getpid()}\)"):
        Lock(tmp_path / "lock")

    def work():
        with pytest.raises(UsageError, match=rf"\({os.getppid()}\)"):
            Lock(tmp_path / "lock")

    assert in_child(work) == 0
    first.close()
    first.close()
    Lock(tmp_path / "lock").close()


def test_a_lock_in_a_place_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"could not write .*: No such file or directory"):
        Lock(tmp_path / "no" / "lock")


HOLDER = """
import os, sys, time
from limbeck.core.files import Lock
lock = Lock(sys.argv[1])
if os.fork() == 0:  # as a data loader's worker does, which may outlive its parent
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def test_a_killed_holder_holds_nothing_even_if_its_child_lives_on(tmp_path):
    path = str(tmp_path / "lock")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        with pytest.raises(UsageError, match=rf"\({parent.pid}\)"):
            Lock(path)
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        os.kill(child, 0)  # it does live on
        Lock(path).close()
    finally:
        parent.kill()
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()
