"""GKD: its loss by loops over texts and tokens, and whose texts the steps are on."""

import pytest
import torch
from toys import CONTEXT, EOS, VOCAB, model, task, texts

import limbeck
from limbeck.core.data import Batch, Epochs
from limbeck.core.method import Clock
from limbeck.core.signals import Dense
from limbeck.core.teacher import Setting
from limbeck.core.teachers import Frozen
from limbeck.core.text.places import IGNORED
from limbeck.errors import UsageError
from limbeck.language.gkd import GKD, Mixed

pytestmark = pytest.mark.xdist_group("language")


class Shown:
    def __init__(self, z):
        self.signal = Dense(z)


def sides(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, CONTEXT, VOCAB, generator=generator, dtype=torch.float64)


def batch():
    return Batch(**texts(4))


@pytest.mark.parametrize("per", ["text", "token"])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_loss_is_the_papers(per, beta):
    s, t, here = sides(0), sides(1), batch()
    found = GKD(gkd=2.0, beta=beta, per=per).terms(None, Shown(s), Shown(t), here, None)["gkd"]
    each = []
    for b in range(4):
        row = []
        for i in range(CONTEXT - 1):
            if here.y[b, i + 1] == IGNORED:
                continue
            p, q = t[b, i].softmax(-1), s[b, i].softmax(-1)
            m = beta * p + (1 - beta) * q
            row.append(
                float(beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum())
            )
        each.append(row)
    tokens = sum(map(len, each))
    mean = sum(sum(r) / len(r) for r in each) / 4 if per == "text" else sum(map(sum, each)) / tokens
    assert float(found.sum / found.count) == pytest.approx(2 * mean)
    assert int(GKD(per=per).counts(here)["gkd"]) == (4 if per == "text" else tokens)


def test_teacher_as_student_gives_nothing():
    z = sides(0)
    for divergence in ("jsd", "forward_kl", "reverse_kl", "tv"):
        found = GKD(divergence=divergence).terms(None, Shown(z), Shown(z), batch(), None)["gkd"]
        assert float(found.sum) == 0.0


def mixed(own, other="data", new=5):
    made = Mixed(Epochs(texts(16)), task().data["text"], new=new, least=2)
    made.own, made.other = own, other
    return made


def clock(step=0, n=0, of=1, **more):
    return Clock(0, "fit", step, 50, 4, n=n, of=of, batch=4, draw=step, **more)


def rows(batch):
    """Texts without their padding."""
    pairs = zip(batch.x["ids"], batch.x["mask"].bool(), strict=True)
    return [ids[there].tolist() for ids, there in pairs]


def test_share_of_steps_on_the_students_texts():
    batches = mixed(0.3)
    seen = [
        batches.source(float(clock(k).rng("source", torch.zeros(1).long()).rand()), None, None)
        for k in range(2000)
    ]
    assert set(seen) == {"student", "data"}
    assert seen.count("student") / 2000 == pytest.approx(0.3, abs=0.03)


def test_own_texts_go_on_from_the_prompts_as_the_student_says():
    student, data = model(), mixed(0.0)(model(), None, clock(3))
    made = mixed(1.0)(student, None, clock(3))
    assert bool(made.written.all())
    assert bool(made.changed.all())
    for b in range(4):
        prompt = data.x["ids"][b, :4]
        assert torch.equal(made.x["ids"][b, :4], prompt)
        assert bool((made.y[b, :4] == IGNORED).all())
        said = made.y[b][made.y[b] != IGNORED]
        assert 1 <= len(said) <= 5
        assert EOS not in said[:-1]
        assert torch.equal(made.x["ids"][b][made.x["mask"][b].bool()][4:], said)
    assert not torch.equal(made.x["ids"], mixed(1.0)(student, None, clock(7)).x["ids"])
    assert torch.equal(made.x["ids"], mixed(1.0)(student, None, clock(3)).x["ids"])


def test_micro_batches_are_the_cuts_of_the_batch():
    student = model()
    whole = mixed(1.0)(student, None, clock(2))
    parts = [mixed(1.0)(student, None, clock(2, n, 2)) for n in range(2)]
    assert [row for part in parts for row in rows(part)] == rows(whole)


def test_teachers_texts_instead_of_the_datas():
    teacher = Frozen(model(2, 24, seed=1)).attach(Setting())
    made = mixed(0.0, "teacher")(model(), teacher, clock(1))
    direct = mixed(1.0)(teacher.module, None, clock(1))
    assert torch.equal(made.x["ids"], direct.x["ids"])
    with pytest.raises(UsageError, match="needs a live one"):
        mixed(0.0, "teacher")(model(), None, clock(1))


def test_a_run_lowers_the_divergence_and_keeps_the_model_as_it_is():
    result = limbeck.run("gkd", task(steps=40), own=0.5, new=5)
    assert type(result.model).__name__ == "LlamaForCausalLM"
    terms = [row["terms"]["gkd"] for row in result.log]
    assert sum(terms[-5:]) < 0.8 * sum(terms[:5])


def test_no_room_for_a_prompt():
    with pytest.raises(UsageError, match=f"context of {CONTEXT}"):
        limbeck.run("gkd", task(), new=CONTEXT)


def test_tasks_that_are_no_text():
    net = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="is for text"):
        limbeck.run("gkd", limbeck.Task(net, net, (torch.zeros(8, 2), torch.zeros(8).long())))
