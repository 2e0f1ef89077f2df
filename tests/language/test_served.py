"""A teacher behind an OpenAI-compatible server: what it shows, what it costs, how it fails."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers")

import limbeck
from limbeck.cli import main
from limbeck.core import posting
from limbeck.core.sources.specs import model_of, placed
from limbeck.core.text.naming import Names
from limbeck.core.text.served import served
from limbeck.errors import Missing, UsageError
from limbeck.language import task

pytestmark = pytest.mark.xdist_group("served")

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs"]
TEXTS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 24)) + "." for i in range(1, 25)]


def tokenizer(size, more=()):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<eos>", *more],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")


def llama(words, layers):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(layers)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
            initializer_range=0.6,  # far from even
        )
    ).eval()


class Server:
    """An OpenAI-compatible server on this machine; attributes change how it answers."""

    def __init__(self, model, words):
        self.model, self.words = model, words
        self.posts, self.headers, self.faults, self.models = [], [], [], ["tiny"]
        self.names = "numbers"  # "decoded", "written": names tokens so, whatever is asked
        self.most, self.pause, self.change = 20, 0.0, lambda told: told
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.say(200, json.dumps({"data": [{"id": name} for name in outer.models]}))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.posts.append(body)
                outer.headers.append(dict(self.headers))
                time.sleep(outer.pause)
                if outer.faults:
                    return self.say(*outer.faults.pop(0))
                if body["logprobs"] > outer.most:
                    return self.say(400, f"logprobs must be at most {outer.most}")
                self.say(200, json.dumps(outer.change(outer.answer(body))))

            def say(self, status, told, **more):
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(told.encode())

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def name(self, token, numbers):
        if numbers and self.names == "numbers":
            return f"token_id:{token}"
        if self.names == "written":
            return self.words.convert_ids_to_tokens(token)
        return self.words.decode([token])

    def answer(self, body):
        numbers = body.get("return_tokens_as_token_ids", False)
        choices = []
        for index, text in enumerate(body["prompt"]):
            with torch.no_grad():
                logp = self.model(torch.tensor([text])).logits[0].log_softmax(-1)
            text = [*text, int(logp[-1].argmax())]
            told = {"tokens": [self.name(t, numbers) for t in text], "token_logprobs": [None]}
            told["top_logprobs"] = [None]
            for row, true in zip(logp, text[1:], strict=True):
                best = row.topk(body["logprobs"])
                entries = {true: float(row[true])}  # vLLM: the text's own token comes first
                entries |= dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
                told["token_logprobs"].append(float(row[true]))
                told["top_logprobs"].append({self.name(t, numbers): v for t, v in entries.items()})
            choices.append({"index": index, "text": "", "logprobs": told})
        return {"object": "text_completion", "choices": choices[::-1]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    words = tokenizer(300)
    for name, layers in (("teacher", 2), ("student", 1)):
        llama(words, layers).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    tokenizer(270).save_pretrained(folder / "other")
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS), "utf-8")
    return SimpleNamespace(folder=folder, words=words, teacher=llama(words, 2))


waits: list[float] = []


@pytest.fixture
def server(place, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(posting, "time", SimpleNamespace(sleep=waits.append))
    waits.clear()
    made = Server(place.teacher, place.words)
    yield made
    made.http.shutdown()


def ids_of(place, text=TEXTS[0]):
    return place.words(text)["input_ids"]


def teacher(place, server, words=None, **more):
    return served(server.url, "", words or place.words, ids_of(place), **more)


def batch(place, n=5):
    rows = [ids_of(place, text)[: 20 - 3 * i] for i, text in enumerate(TEXTS[:n])]
    ids, mask = torch.zeros(n, 22, dtype=torch.int64), torch.zeros(n, 22, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def expected(place, inputs, k=20):
    with torch.no_grad():
        logp = place.teacher(**inputs).logits.log_softmax(-1)
    there = inputs["attention_mask"][:, 1:].bool()
    best = logp[:, :-1].topk(k)
    true = logp[:, :-1].gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    ids, order = best.indices.sort(-1)
    return there, ids, best.values.gather(-1, order), true


def pairs(a, b):
    return zip(a.tolist(), b.tolist(), strict=True)


@pytest.mark.parametrize("names", ["numbers", "decoded", "written"])
def test_the_signal_is_the_teachers_likeliest_tokens(place, server, names):
    server.names = names
    box, inputs = teacher(place, server), batch(place)
    found = box.ask(inputs)
    there, ids, logp, true = expected(place, inputs)
    signal = found["signal"].at(slice(None))
    assert signal.vocab == len(place.words)
    assert signal.ids.shape == (5, 22, 20)
    assert (signal.ids[:, -1] == -1).all()  # nothing after a text's last token
    torch.testing.assert_close(found["truth"][:, :-1][there], true[there])
    mine, values = signal.ids[:, :-1][there], signal.logp[:, :-1][there]
    if names == "decoded":  # some bytes alone are no text: these are left in the tail
        assert 0 < box.ask.untold < 0.2 * box.ask.entries
        told = [dict(zip(i, v, strict=True)) for i, v in pairs(mine, values)]
        whole = [dict(zip(i, v, strict=True)) for i, v in pairs(ids[there], logp[there])]
        for some, all_ in zip(told, whole, strict=True):
            some.pop(-1, None)
            assert all(all_.get(i, v) == pytest.approx(v, abs=1e-5) for i, v in some.items())
    else:
        assert box.ask.untold == 0
        torch.testing.assert_close(mine, ids[there])
        torch.testing.assert_close(values, logp[there])
    assert box.identity() == f"black box {server.url}#tiny signal"


def test_no_text_is_asked_about_twice(place, server):
    box = teacher(place, server, batch=2)
    looked = len(server.posts)
    assert looked == 2  # in words, then by number
    box.ask(batch(place))
    assert [len(body["prompt"]) for body in server.posts[looked:]] == [2, 2, 1]
    again = teacher(place, server)  # another process would read the same file
    first, second = again.ask(batch(place)), box.ask(batch(place, 3))
    torch.testing.assert_close(first["signal"].logp[:3], second["signal"].logp)
    assert (again.ask.asked, box.ask.asked, len(server.posts)) == (0, 5, 5)
    with pytest.raises(UsageError, match=r"the budget of 1 requests .* is spent"):
        teacher(place, server, requests=1, batch=1).ask.of(3)(batch(place))


def test_a_server_that_gives_five_is_asked_for_five(place, server):
    server.most = 5
    box = teacher(place, server)
    assert box.ask.top == 5
    assert "the 5 likeliest tokens (it refused 20)" in box.ask.notes[0]
    assert box.ask(batch(place))["signal"].ids.shape[-1] == 5


def test_what_may_pass_is_tried_again(place, server):
    server.faults = [(500, ""), (429, "slow down"), (503, "")]
    teacher(place, server)
    assert waits == [0.5, 1.0, 2.0]


def without(name):
    def change(told):
        for choice in told["choices"]:
            choice["logprobs"] = choice["logprobs"] if name else None
            if name:
                choice["logprobs"][name] = [None, {}]
        return told

    return change


def llama_cpp(told):
    for choice in told["choices"]:
        choice["logprobs"] = {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": []}]}
    return told


def fewer(told):
    for choice in told["choices"]:
        for values in choice["logprobs"].values():
            del values[3:8]
    return told


def wrong(value):
    def change(told):
        told["choices"][0]["logprobs"]["top_logprobs"][2] = value
        return told

    return change


KILLED = """
import os, signal, sys, torch
from transformers import AutoTokenizer
from limbeck.core import answers
from limbeck.core.text.served import served
real, count = answers.Store.write, [0]
def write(self, answers):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # the answer is here, and not yet on the disk
    real(self, answers)
answers.Store.write = write
words = AutoTokenizer.from_pretrained(sys.argv[2])
rows = torch.tensor(eval(sys.argv[3]))
box = served(sys.argv[1], "tiny", words, rows[0].tolist(), batch=2)
box.ask({"input_ids": rows, "attention_mask": torch.ones_like(rows)})
"""


def test_killed_between_a_request_and_its_keeping_it_asks_again_once(place, server):
    """A look of two requests, then two of two texts: the last was answered, lost, and is redone."""
    rows = torch.tensor([ids_of(place, text)[:12] for text in TEXTS[:4]])
    command = [server.url, str(place.folder / "teacher"), str(rows.tolist())]
    env = {**os.environ, "PYTHONPATH": str(Path(limbeck.__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", KILLED, *command], env=env, check=False)
    assert child.returncode == -signal.SIGKILL
    assert [len(body["prompt"]) for body in server.posts] == [1, 1, 2, 2]
    box = served(server.url, "tiny", place.words, rows[0].tolist(), batch=2)
    inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    found = box.ask(inputs)
    assert len(server.posts) == 5
    assert server.posts[4] == server.posts[3]
    torch.testing.assert_close(found["truth"][:, :-1], expected(place, inputs)[3])
    box.ask(inputs)
    assert len(server.posts) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(""), "gives no log-probabilities of the prompt .* llama.cpp's server"),
        (llama_cpp, "gives no log-probabilities of the prompt"),
        (lambda told: [], 'what is no {"choices": [...]}: .*OpenAI-compatible'),
        (lambda told: {"choices": []}, "gave 0 choices for 1 texts"),
        (fewer, "answered about .*another tokenizer, name it, as openai:URL#MODEL@hf:ID"),
        (wrong({"token_id:5": 0.7}), "must be numbers, at most 0"),
        (wrong({"token_id:5": float("nan")}), "must be numbers"),
        (wrong({"token_id:5": -0.1, "token_id:6": -0.1}), "sum to 1 at most"),
        (wrong("x"), "for log-probabilities of a token"),
        (wrong({"token_id:5": "low"}), "must be numbers"),
    ],
)
def test_nonsense_is_one_sentence_and_is_not_kept(place, server, change, said):
    server.change = change
    with pytest.raises(UsageError, match=said.replace("{", r"\{").replace("[", r"\[")) as error:
        teacher(place, server)
    assert "\n" not in str(error.value)
    server.change = lambda told: told
    teacher(place, server).ask(batch(place))


def test_no_json_a_key_an_address_and_a_slow_server(place, server, monkeypatch):
    for fault, said in (
        ((200, "<html>hello"), "answered what is no .*choices.*: a web page: hello; it must be"),
        ((401, "who?"), "refused: it answered 401 .*who.*; put its key into the variable OPENAI"),
        ((404, "what?"), "refused: it answered 404 .*usually ends in /v1.*tiny"),
    ):
        server.faults = [fault]
        with pytest.raises(UsageError, match=said):
            teacher(place, server)
    server.faults = [(400, "no echo"), (400, "no echo")]
    with pytest.raises(UsageError, match=r"refused: it answered 400 .*echo and logprobs, as vLLM"):
        teacher(place, server)
    server.pause = 1.0
    with pytest.raises(
        UsageError, match=r"could not be asked, 2 times in a row \(nothing came within"
    ):
        teacher(place, server, timeout=0.2, retries=1)
    server.pause, server.models = 0.0, ["one", "two"]
    with pytest.raises(UsageError, match=r"has 2 models \(one, two\); name one"):
        teacher(place, server)


def test_another_vocabulary_is_seen(place, server):
    with pytest.raises(UsageError, match=r"reads them by another .* name the tokenizer of tiny"):
        served(server.url, "tiny", tokenizer(262), ids_of(place))
    names = Names(place.words)
    assert [names.id_of(t) for t in ("token_id:5", "token_id:300", "token_id:9999")] == [5, -1, -1]


class Swapped:
    """The model's own tokenizer but for two tokens, which have each other's texts."""

    def __init__(self, words, one, two):
        self.words, self.change = words, {one: two, two: one}

    def decode(self, ids):
        return self.words.decode([self.change.get(i, i) for i in ids])

    def convert_ids_to_tokens(self, token):
        return self.words.convert_ids_to_tokens(self.change.get(token, token))


@pytest.mark.parametrize("names", ["numbers", "decoded", "written"])
def test_a_tokenizer_that_shares_most_ids_is_refused(place, server, names):
    """Of 300 tokens two differ; one is in the first text or of those from all over, or comes up."""
    server.names, own = names, place.words
    mixed = r"reads them by another \('(.*)' for '(.*)'\); name the tokenizer of tiny"
    first, (later,), (rare,) = ids_of(place)[3], own("runs")["input_ids"], own("ju")["input_ids"]
    spread = next(i for i in Names(own).spread(32) if i not in ids_of(place)[:32])
    assert not {later, rare} & {*ids_of(place)[:32], *Names(own).spread(32)}
    for token in (first, spread):
        server.words = Swapped(own, token, rare)
        with pytest.raises(UsageError, match=mixed):
            teacher(place, server)
    if names == "numbers":  # then it never says again how it reads them
        return
    server.words = Swapped(own, later, rare)
    box = teacher(place, server)
    row = torch.tensor([[*own("the fox")["input_ids"], later, later]])
    with pytest.raises(UsageError, match=mixed):
        box.ask({"input_ids": row, "attention_mask": torch.ones_like(row)})


def test_tokens_from_all_over_a_vocabulary(place):
    found = Names(place.words).spread(32)
    assert 20 <= len(found) <= 32
    assert found == sorted(set(found))
    assert found[0] < 60
    assert found[-1] > 260
    assert all("\ufffd" not in place.words.decode([i]) for i in found)


def test_its_words():
    model = model_of("openai:http://h:8000/v1/#org/name@hf:org/words", "teacher")
    assert (model.name, model.model) == ("http://h:8000/v1", "org/name")
    assert placed(model) == "openai:http://h:8000/v1#org/name@hf:org/words"
    assert model_of("openai:http://h/v1", "teacher").model == ""
    for words, said in (
        ("openai:http://me:pw@h/v1", "password.*the variable OPENAI_API_KEY"),
        ("openai:http://h/v1?api_key=1", "OPENAI_API_KEY"),
        ("openai:h:8000", "no address of a server"),
        ("openai:http://h/v1@hf:x", "after a #"),
    ):
        with pytest.raises(UsageError, match=said) as error:
            model_of(words, "teacher")
        assert "pw" not in str(error.value)
    with pytest.raises(UsageError, match="a student is trained here"):
        model_of("openai:http://h/v1", "student")


# --- as a teacher ---------------------------------------------------------------------------------


def made(place, server, **more):
    words = f"openai:{server.url}"
    return task(words, str(place.folder / "student"), TEXTS, context=32, **more)


def test_a_run_equals_one_from_a_cache_of_the_same_tokens(place, server, tmp_path):
    from limbeck.core.caching import cache_teacher
    from limbeck.core.text.kept import Keep

    told = {"own": 0.0, "divergence": "forward_kl"}
    live = limbeck.run("gkd", made(place, server), out=tmp_path / "live", **told)
    local = task(str(place.folder / "teacher"), str(place.folder / "student"), TEXTS, context=32)
    kept = [tmp_path / "one", tmp_path / "two"]
    for folder, of in zip(kept, (local, made(place, server)), strict=True):
        cache_teacher(of, folder, keep=Keep(k=20, bits=8), batch=8)
    assert (kept[0] / "packed.rows").read_bytes() == (kept[1] / "packed.rows").read_bytes()
    runs = [
        limbeck.run("gkd", of, cache=folder, **told)
        for folder, of in zip(kept, (local, made(place, server)), strict=True)
    ]
    each = [r.model.state_dict() for r in (*runs, live)]
    for name, value in each[0].items():
        torch.testing.assert_close(value, each[1][name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(value, each[2][name], atol=2e-3, rtol=0)  # of 8 bits
    measured = json.loads((tmp_path / "live" / "appraisal.json").read_text("utf-8"))
    side = measured["sides"]["teacher"]
    whole = limbeck.runs.appraisal.appraise(local, live.model, None, torch.device("cpu"))
    assert side["perplexity"] == pytest.approx(whole["sides"]["teacher"]["perplexity"], rel=1e-4)
    assert side["top1"] == pytest.approx(whole["sides"]["teacher"]["top1"])
    assert side["entropy"] is None
    assert "parameters" not in side
    mine, theirs = (m["agreement"]["student"] for m in (measured, whole))
    assert mine["top1"] == pytest.approx(theirs["top1"])
    assert 0.5 * theirs["kl"] < mine["kl"] <= theirs["kl"] + 1e-6  # the rest is one outcome
    assert json.loads((tmp_path / "live" / "result.json").read_text("utf-8"))["requests"] > 0


def test_on_its_own_texts_and_again_from_the_disk(place, server, tmp_path):
    told = {"own": 0.5, "new": 4, "divergence": "jsd"}
    first = limbeck.run("gkd", made(place, server), **told)
    posts = len(server.posts)
    second = limbeck.run("gkd", made(place, server), **told)
    assert len(server.posts) == posts
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    limbeck.run("distillm", made(place, server), phi=0.5, new=4)
    limbeck.run("rs_kd", made(place, server), estimate="tail")
    with pytest.raises(UsageError, match=r"shows its likeliest tokens.*estimate=tail"):
        limbeck.run("rs_kd", made(place, server))


def test_what_a_server_cannot_give_is_named(place, server):
    inside = {"alm": 0.0, "latent": 1.0}
    for key, fields, said in (
        ("alm", inside, "asked for 'hidden', but it gives signal, truth"),
        ("minillm", {}, "leave the cache or the server away"),
    ):
        with pytest.raises(UsageError, match=said):
            limbeck.run(key, made(place, server), **fields)
    with pytest.raises(UsageError, match="made of its teacher"):
        task(f"openai:{server.url}", "truncate:1", TEXTS)
    rows = [{"text": t, "label": "ab"[len(t) % 2]} for t in TEXTS]
    with pytest.raises(UsageError, match="have labels"):
        task(f"openai:{server.url}", str(place.folder / "student"), rows)
    with pytest.raises(Missing, match="no/such"):
        task(f"openai:{server.url}#tiny@no/such", str(place.folder / "student"), TEXTS)


def test_another_tokenizer_is_named_and_aligned(place, server):
    """The server's own is of 300 tokens, the student's of 270."""
    words = tokenizer(270, ["<more>"])  # so that all numbers are other ones
    student = llama(words, 1), words
    with pytest.raises(UsageError, match="another"):
        task(f"openai:{server.url}", student, TEXTS, context=32)
    named = f"openai:{server.url}#tiny@{place.folder / 'teacher'}"
    found = task(named, student, TEXTS, context=32)
    assert found.readers["teacher"].side == "t_"
    limbeck.run("uld", found, top=15)
    with pytest.raises(UsageError, match=r"shows its \d+ likeliest tokens .* top=0 .* give top="):
        limbeck.run("uld", found)
    assert len(task(named, str(place.folder / "student"), TEXTS, context=32).train["x"]) == 2


def test_the_command_line_and_no_key_on_the_disk(place, server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret-key")
    own = ["--teacher", f"openai:{server.url}", "--student", str(place.folder / "student")]
    own += ["--data", str(place.folder / "texts.jsonl"), "--context", "32"]
    assert main(["cache", *own, "--signal", "topk", "--out", "c", "--quiet"]) == 0
    assert server.headers[0]["Authorization"] == "Bearer s3cret-key"
    learn = ["--own", "0", "--divergence", "forward_kl", "--steps", "3", "--batch", "4"]
    assert main(["run", "gkd", *own, *learn, "--cache", "c", "--out", "one", "--quiet"]) == 0
    assert main(["cache", *own, "--k", "21", "--out", "d", "--quiet"]) == 2
    assert "at most 20" in capsys.readouterr().err
    server.http.shutdown()
    server.http.server_close()
    assert main(["export", "one", "--to", "safetensors"]) == 0  # all answers are kept
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"s3cret" not in file.read_bytes()
