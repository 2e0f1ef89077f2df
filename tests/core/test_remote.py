"""A teacher behind HTTP: what it answers, how patiently it is asked, that nothing is lost."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import limbeck
from limbeck.core import posting, remote
from limbeck.core.remote import Client, served
from limbeck.core.task import Budget, Task
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("remote")
G = torch.Generator().manual_seed(0)
X = torch.randn(40, 4, generator=G)
W = torch.randn(4, 3, generator=G)
P = (X @ W).softmax(-1)


def probabilities(rows):
    return (torch.tensor(rows) @ W).softmax(-1).tolist()


class Server:
    """A model server on this machine; `answer` maps a list of instances to (status, body)."""

    def __init__(self, predict=probabilities):
        self.requests, self.headers, self.predict = [], [], predict
        self.faults = []  # (status, headers, body) for the next requests, instead of an answer
        self.pause = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                rows = json.loads(body)["instances"]
                outer.requests.append(rows)
                outer.headers.append(dict(self.headers))
                time.sleep(outer.pause)
                status, more, told = 200, {}, None
                if outer.faults:
                    status, more, told = outer.faults.pop(0)
                if told is None:
                    told = json.dumps({"predictions": outer.predict(rows)})
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(told.encode())

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/predict"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(posting, "time", SimpleNamespace(sleep=waits.append))
    waits.clear()
    server = Server()
    yield server
    server.http.shutdown()


waits: list[float] = []


def client(server, **more):
    given = {"names": ("a", "b", "c"), "classes": 3, "timeout": 5.0, "retries": 4}
    return Client(server.url, **{**given, "requests": None, "batch": 16, **more})


def test_every_sample_is_asked_about_once_in_requests_of_the_batch_size(server):
    ask = client(server)
    torch.testing.assert_close(ask(X), P)
    assert [len(r) for r in server.requests] == [16, 16, 8]
    torch.testing.assert_close(
        ask(torch.cat([X[30:], X[:5], X[:5]])), P[[*range(30, 40), *range(5), *range(5)]]
    )
    assert len(server.requests) == 3
    other = client(server)  # another process would read the same file
    torch.testing.assert_close(other(X[:3] + 0), P[:3])
    assert other.asked == 0
    other(X[:3] + 1)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("predict", "expected"),
    [
        (lambda rows: [2, 0][: len(rows)], torch.tensor([2, 0])),
        (lambda rows: ["c", "a"][: len(rows)], torch.tensor([2, 0])),
        (
            lambda rows: [[{"label": "b", "score": 0.7}], [{"label": 2, "score": 0.5}]][
                : len(rows)
            ],
            torch.tensor([[0.15, 0.7, 0.15], [0.25, 0.25, 0.5]]),
        ),
    ],
)
def test_labels_names_and_the_likeliest_classes(server, predict, expected):
    server.predict = predict
    found = client(server)(X[:2])
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


def test_what_may_pass_is_tried_again_with_growing_pauses(server):
    server.faults = [(503, {}, ""), (500, {}, ""), (429, {"Retry-After": "7"}, "")]
    torch.testing.assert_close(client(server)(X[:4]), P[:4])
    assert waits == [0.5, 1.0, 7.0]
    assert len(server.requests) == 4
    server.faults = [(503, {}, "")] * 9
    with pytest.raises(UsageError, match=r"could not be asked, 3 times in a row \(it answered 503"):
        client(server, retries=2)(X[4:8])
    assert len(server.requests) == 7


def test_a_refusal_is_not_tried_again(server):
    server.faults = [(401, {}, "who are you?")]
    with pytest.raises(UsageError, match=r"refused: it answered 401 Unauthorized: who are you\?"):
        client(server)(X[:4])
    assert len(server.requests) == 1
    server.faults = [(302, {"Location": "http://127.0.0.1:1/"}, "")]
    with pytest.raises(UsageError, match="refused: it answered 302"):
        client(server)(X[:4])


def test_a_slow_server_and_none_at_all_are_said(server):
    server.pause = 0.0
    real = time.monotonic()
    silent = Server()
    silent.http.server_close()
    with pytest.raises(UsageError, match=r"could not be asked, 2 times in a row"):
        client(silent, retries=1, timeout=1.0)(X[:2])
    event = threading.Event()
    server.predict = lambda rows: event.wait(5) and probabilities(rows)
    with pytest.raises(UsageError, match=r"in a row \(nothing came within 0\.2 s\); see that"):
        client(server, retries=0, timeout=0.2)(X[:2])
    event.set()
    assert time.monotonic() - real < 4


def test_the_budget_of_requests_holds_and_nothing_asked_is_lost(server):
    with pytest.raises(UsageError, match=r"the budget of 2 requests .* is spent"):
        client(server, requests=2)(X)
    assert [len(r) for r in server.requests] == [16, 16]
    torch.testing.assert_close(client(server, requests=1)(X), P)
    assert [len(r) for r in server.requests] == [16, 16, 8]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("hello", r"no \{\"predictions\": \[...\]\}: hello; name the address"),
        ('{"predictions": [1]}', "1 predictions for 2 instances"),
        ('{"predictions": [1, 7]}', "the label 7, and there are 3 classes"),
        ('{"predictions": ["a", "d"]}', "'d', which is no class's name or number; .*are: a, b, c"),
        ('{"predictions": ["a", "0"]}', "'0', .* are: a, b, c; a number stands without quotes"),
        ('{"predictions": [[0.5, 0.5], [0.5, 0.5]]}', r"shape \(2,\), and there are 3 classes"),
        ('{"predictions": [[{"label": "a"}], [{}]]}', "write label and score"),
        ('{"predictions": [["x", 1, 2], [1, 2, 3]]}', "for probabilities"),
        ('{"predictions": [[NaN, NaN, NaN], [1, 0, 0]]}', "sum to nan"),
        ('{"predictions": [[1, 0, 0], [Infinity, 0, 0]]}', "sum to inf"),
        ('{"predictions": [[1.5, -0.25, -0.25], [1, 0, 0]]}', r"the smallest is -0\.25"),
        ('{"predictions": [[0.3, 0.3, 0.3], [1, 0, 0]]}', r"sum to 0\.9 "),
        ('{"predictions": [[], [1, 0, 0]]}', r"shape \(0,\), and there are 3"),
        ('{"predictions": [1, [1, 0, 0]]}', "a label for a sample and 3 probabilities for another"),
        ('{"predictions": [null, 1]}', "gave the label None"),
        ('{"predictions": [[{"label": "a", "score": "x"}], [{}]]}', "write label and score"),
        ('{"predictions": [[{"label": "a", "score": NaN}], [1, 0, 0]]}', "sum to nan"),
        ('{"predictions": [[{"label": "a", "score": 7}], [1, 0, 0]]}', "sum to 7"),
        (
            '{"predictions": [[{"label": 0, "score": 0.6}, {"label": "a", "score": 0.4}], 1]}',
            "named a class twice",
        ),
    ],
)
def test_answers_that_cannot_be_read_are_one_sentence(server, body, told):
    server.faults = [(200, {}, body)]
    ask = client(server)
    with pytest.raises(UsageError, match=told) as error:
        ask(X[:2])
    assert "\n" not in str(error.value)
    torch.testing.assert_close(ask(X[:2]), P[:2])  # what was bad is not kept
    assert len(server.requests) == 2


def test_a_label_of_classes_without_names_is_a_number(server):
    server.predict = lambda rows: ["0" for _ in rows]
    with pytest.raises(UsageError, match="'0', and the classes have no names; give whole numbers"):
        client(server, names=())(X[:2])


@pytest.mark.parametrize("status", [200, 404])
def test_what_a_terminal_should_not_be_sent_is_escaped_and_a_page_is_its_words(server, status):
    """No byte of a server reaches a terminal raw: it could colour it, or ring, or turn its text."""
    page = "<!DOCTYPE html><html><head><script>var a = '<b>';</script><title>Sign in</title></head>"
    for body, told in (
        ("\x1b[31mred\x07\u202e", r"\x1b[31mred\x07\u202e"),
        ("\x00" * 5000, "\\x00" * 40 + "..."),
        (page + "<p>to go on</p>", "a web page: Sign in to go on"),
        ("<html></html>", "a web page"),
    ):
        server.faults = [(status, {}, body)]
        with pytest.raises(UsageError) as error:
            client(server, retries=0)(X[:2])
        assert f": {told}" in str(error.value)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 400


def test_bytes_that_are_no_text_are_escaped(server):
    post = posting.Post(server.url, remote.KEY, 1.0, 0, None)
    assert post.start(b"a\xff\x9b\n\xc3\xa9") == "a\\xff\\x9b \u00e9"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", "it closed the connection without an answer"),
        (b"SSH-2.0\x1b\r\n", r"what it said is no HTTP: SSH-2\.0\\x1b"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{", "its answer broke off"),
    ],
)
def test_a_server_that_does_not_end_what_it_says(server, said, told):
    def once():
        link, _ = door.accept()
        link.recv(65536)
        link.sendall(said)
        link.close()

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=once, daemon=True).start()
        server.url = f"http://127.0.0.1:{door.getsockname()[1]}/"
        with pytest.raises(UsageError, match=told):
            client(server, retries=0)(X[:2])


def test_kept_answers_that_do_not_fit_name_their_file(server, tmp_path):
    client(server)(X[:2])
    (store,) = (tmp_path / "cache" / "served").iterdir()
    with pytest.raises(UsageError, match=f"there are 2 classes .*kept.*remove {store}"):
        client(server, names=("a", "b"), classes=2)(X[:2])
    server.predict = lambda rows: [1 for _ in rows]
    ask = client(server)
    with pytest.raises(UsageError, match=f"a label for each sample, and 3 prob.* remove {store}"):
        ask(X[:4])
    torch.testing.assert_close(ask(X[:2]), P[:2])
    store.unlink()
    assert client(server)(X[:2]).tolist() == [1, 1]


def test_a_number_that_may_mean_two_classes_is_refused(server):
    """Class names "1", "2", "3": is 1 the first of them, or the one at place 1?"""
    server.predict = lambda rows: [1 for _ in rows]
    with pytest.raises(UsageError, match="may be the class '1' or that of number 1, '2'"):
        client(server, names=("1", "2", "3"))(X[:1])
    assert client(server, names=("0", "1", "2"))(X[:1]).tolist() == [1]
    server.predict = lambda rows: ["1" for _ in rows]
    assert client(server, names=("1", "2", "3"))(X[1:2]).tolist() == [0]


def test_a_token_is_sent_and_kept_nowhere(server, monkeypatch, tmp_path):
    monkeypatch.setenv(remote.KEY, "s3cret-token")
    teacher = served(server.url + "?v=1", X[:1], names=("a", "b", "c"))
    assert server.headers[0]["Authorization"] == "Bearer s3cret-token"
    task = Task(teacher, torch.nn.Linear(4, 3), (X, P.argmax(1)), budget=Budget(steps=3, batch=8))
    limbeck.run("kd", task, out=tmp_path / "run")
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"s3cret" not in file.read_bytes()
    with pytest.raises(UsageError, match="holds a name or password"):
        served("http://me:pw@127.0.0.1/", X[:1])


def test_an_answer_that_breaks_off_is_asked_for_again(server):
    server.faults = [(200, {"Content-Length": "500"}, "{}")]
    torch.testing.assert_close(client(server)(X[:2]), P[:2])
    assert len(server.requests) == 2


def test_a_token_that_a_server_repeats_is_masked(server, monkeypatch):
    monkeypatch.setenv(remote.KEY, "s3cret-token")
    ask = client(server, retries=0)
    for status, body in (
        (403, "no: Bearer s3cret-token"),
        (503, "s3cret-token"),
        (200, "<s3cret-token>"),
        (200, '{"predictions": ["s3cret-token"]}'),
        (200, '{"predictions": [["s3cret-token"]]}'),
    ):
        server.faults = [(status, {}, body)]
        with pytest.raises(UsageError) as error:
            ask(X[:1])
        assert "***" in str(error.value)
        assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("token", ["s3cret\nX: y", "s3cret\n", "s3cr\u0119t", "s3 cret"])
def test_a_token_that_cannot_be_sent_is_said_before_a_request(server, monkeypatch, token):
    monkeypatch.setenv(remote.KEY, token)
    ask = client(server)
    with pytest.raises(UsageError, match=f"the variable {remote.KEY} holds a blank") as error:
        ask(X[:2])
    assert "s3" not in str(error.value)
    assert (server.requests, ask.asked, waits) == ([], 0, [])


def test_the_requests_of_a_teacher_are_counted(server):
    teacher = served(server.url, X[:1], names=("a", "b", "c"), batch=16)
    server.faults = [(503, {}, "")]
    teacher.ask(X)
    teacher.ask(X)
    assert teacher.ask.asked == len(server.requests) == 1 + 1 + 3


def test_the_answers_are_for_their_owner_alone(server, tmp_path):
    client(server)(X[:2])
    (store,) = (tmp_path / "cache" / "served").iterdir()
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    store.write_bytes(b"not a database, not at all, and long enough to be seen as none" * 30)
    with pytest.raises(UsageError, match="cannot be read or written"):
        client(server)(X[:2])


KILLED = """
import os, signal, sys, torch
from limbeck.core import answers, remote
real, count = answers.Store.write, [0]
def write(self, answers):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # the answer is here, and not yet on the disk
    real(self, answers)
answers.Store.write = write
torch.manual_seed(0)
ask = remote.Client(sys.argv[1], (), 3, 5.0, 0, None, 16)
ask(torch.arange(160.0).view(40, 4) / 100)
"""


def test_killed_between_a_request_and_its_keeping_it_asks_again_once(server):
    """The third of three requests was answered and lost: it alone comes again."""
    env = {**os.environ, "PYTHONPATH": str(Path(limbeck.__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", KILLED, server.url], env=env, check=False)
    assert child.returncode == -signal.SIGKILL
    assert len(server.requests) == 3
    x = torch.arange(160.0).view(40, 4) / 100
    found = client(server, names=())(x)
    assert len(server.requests) == 4
    assert server.requests[3] == server.requests[2]
    torch.testing.assert_close(found, (x @ W).softmax(-1))
