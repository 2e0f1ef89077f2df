"""GKD: its loss by loops over texts and tokens, and whose texts the steps are on."""

import pytest
import torch
from toys import CONTEXT, EOS, PAD, VOCAB, model, task, texts

import limbeck
from limbeck.core.data import Batch, Epochs
from limbeck.core.method import Clock
from limbeck.core.signals import Dense
from limbeck.core.teacher import Setting
from limbeck.core.teachers import Frozen
from limbeck.core.text.facts import Text
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


def test_a_teacher_of_as_many_other_tokens_is_refused():
    """Whose places might pair by chance, and whose ids mean something else."""
    text = Text(VOCAB, CONTEXT, (EOS,), PAD, other=range(VOCAB))
    for key in ("gkd", "distillm", "minillm", "rs_kd"):
        with pytest.raises(UsageError, match=f"{key} compares .* list --kind cross_tokenizer"):
            limbeck.run(key, task(data={"text": text}))


# --- rewards -------------------------------------------------------------------------------------


def test_a_reward_by_loops_is_the_policy_gradient():
    """-(r - b) log q(y), a mean over texts, its gradient that of plain logarithms."""
    how, here = GKD(reward=0.25, gkd=2.0, temperature=0.8), batch()
    here = here.replace(reward=torch.tensor([1.0, 0.0, 0.5, 0.25]))
    parts = how.build(None, None, here, None)
    parts.mean.fill_(0.4)
    z, t = sides(0).requires_grad_(), sides(1)
    found = how.terms(parts, Shown(z), Shown(t), here, None)
    slow = 0
    for b in range(4):
        for i in range(CONTEXT - 1):
            if here.y[b, i + 1] != IGNORED:
                logp = (z[b, i] / 0.8).log_softmax(-1)[here.y[b, i + 1]]
                slow = slow - 0.25 * (float(here.reward[b]) - 0.4) * logp / 4
    value = found["reward"].sum / found["reward"].count
    assert float(value.detach()) == pytest.approx(float(slow.detach()), rel=1e-5)
    one, two = (torch.autograd.grad(v, z, retain_graph=True)[0] for v in (value, slow))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    plain = GKD(gkd=1.5).terms(None, Shown(z), Shown(t), here, None)["gkd"]
    assert float(found["gkd"].sum.detach()) == pytest.approx(float(plain.sum.detach()))
    assert set(how.counts(here)) == {"gkd", "reward"}
    assert float(how.terms(parts, Shown(z), Shown(t), batch(), None)["reward"].sum) == 0.0


def test_the_baseline_is_a_moving_mean_that_begins_with_the_first():
    how, mean = GKD(reward=0.5), None
    parts = how.build(None, None, batch(), None)
    for step, rewards in enumerate(([1.0, 3.0], None, [0.0, 1.0], [4.0, 4.0])):
        seen = {} if rewards is None else {"reward": torch.tensor(rewards)}
        how.after_step(parts, seen, clock(step))
        if rewards is not None:
            here = sum(rewards) / 2
            mean = here if mean is None else 0.9 * mean + 0.1 * here
        assert float(parts.mean) == pytest.approx(mean)


def test_rewards_are_of_what_the_student_wrote_against_the_datas():
    seen = []

    def reward(prompts, said, truths):
        seen.append((prompts, said, truths))
        return [float(len(text.split())) for text in said]

    made = mixed(1.0)
    made.reward = reward
    here, data = made(model(), None, clock(3)), mixed(0.0)(model(), None, clock(3))
    ((prompts, said, truths),) = seen
    for b in range(4):
        own = [i for i in here.y[b].tolist() if i not in (IGNORED, EOS)]
        true = [i for i in data.y[b].tolist() if i != IGNORED][:5]
        assert prompts[b] == " ".join(map(str, data.x["ids"][b, :4].tolist()))
        assert said[b] == " ".join(map(str, own))
        assert truths[b] == " ".join(str(i) for i in true if i != EOS)
        assert float(here.reward[b]) == len(own)
    made.own = 0.0
    assert "reward" not in made(model(), None, clock(3))
    made.own, made.reward = 1.0, lambda prompts, said, truths: [1.0]
    with pytest.raises(UsageError, match="it has to give one for each"):
        made(model(), None, clock(3))


def test_a_run_with_a_reward_alone_raises_it():
    """For the share of some tokens in what is written; a batch of many, so that it can be seen."""
    kept = []

    def reward(prompts, said, truths):
        rows = [[int(w) % 2 for w in text.split()] or [0] for text in said]
        kept.append(sum(sum(row) / len(row) for row in rows) / len(rows))
        return [sum(row) / len(row) for row in rows]

    made = task(steps=60, batch=16, data={"reward": reward})
    result = limbeck.run("gkd", made, own=1.0, new=5, reward=1.0)
    assert set(result.log[-1]["terms"]) == {"reward"}
    assert sum(kept[-10:]) / 10 > sum(kept[:10]) / 10 + 0.1


def test_a_reward_for_a_student_that_never_writes():
    with pytest.raises(UsageError, match="own is 0"):
        GKD(reward=0.5, own=0.0)
