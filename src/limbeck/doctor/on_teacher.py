"""Questions about the teacher: is it better, fed and read rightly, calibrated; do they agree."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.core.teachers import BlackBox, Cached
from limbeck.doctor import limits
from limbeck.doctor.numbers import error_of
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Finding, State
from limbeck.runs import measures


def _unknown(name: str, seen: Seen, otherwise: str) -> Finding:
    why = seen.faults.get("teacher") or seen.faults.get("task") or otherwise
    return Finding(name, "unknown", f"not known: {why}")


def better(seen: Seen) -> Finding:
    """Is the teacher better than the student is without it?"""
    t = seen.score("teacher", "held")
    after = seen.records is not None
    others = {
        side: value
        for side in (("alone", "student") if not after or seen.score("alone", "held") is None
                     else ("alone",))
        if (value := seen.score(side, "held")) is not None
    }  # fmt: skip
    if t is None or not others:
        return _unknown("teacher", seen, "no accuracy of both sides on held-out samples")
    side = max(others, key=lambda k: others[k])
    s, n = others[side], seen.count("held")
    noise = limits.NOISE * (error_of(t, n) ** 2 + error_of(s, n) ** 2) ** 0.5 if n else 0.02
    who = {"alone": "the student alone", "student": "the student"}[side]
    when = "" if after else f" after {seen.steps} steps"
    fed = " (once it is fed and read rightly)" if seen.misread else ""
    many = f"{n} " if n else ""
    says = f"the teacher has {t:.3f}{fed} on {many}held-out samples, {who} {s:.3f}{when}"
    own = seen.score("teacher", "train")
    if own is not None and own < limits.LEARNED and not seen.misread:
        says += f", and is right on {own:.3f} of the training samples only"
        return Finding("teacher", "bad", says, "train the teacher longer: it has learned little")
    if seen.at_chance:
        advice = "it knows nothing of new samples: give more, or augment them (--augment crop,flip)"
        return Finding("teacher", "bad", f"{says}: it is at chance", advice)
    if t > s or (after and side == "student" and t > s - noise):
        return Finding("teacher", "good", says)
    if s - t <= noise and noise > limits.TELLS:
        says += f"; {n} samples are too few to tell them apart"
        return Finding("teacher", "unknown", says)
    advice = "take a better teacher, or train this one longer: there is little to learn from it"
    taught = after and side == "student"  # it may well outgrow a teacher that helped it
    state: State = "bad" if t < s - noise and not taught else "watch"
    return Finding("teacher", state, says, advice)


def classes(seen: Seen) -> Finding:
    """Do the teacher's classes stand in the order of the labels?"""
    if "classes" in seen.faults:
        advice = "give a teacher with a head for these classes, or retrain its head on these data"
        return Finding("classes", "bad", seen.faults["classes"], advice)
    found = seen.order
    if found is None:
        t = seen.answers.get(("teacher", "held"), seen.answers.get(("teacher", "train")))
        if t is None:
            return _unknown("classes", seen, "the teacher was not asked")
        says = f"no other order of the teacher's {seen.classes} classes fits the labels better"
        return Finding("classes", "good", says)
    told = ", ".join(f"{i} -> {k}" for i, k in found.moved[:6])
    more = f" and {len(found.moved) - 6} more" if len(found.moved) > 6 else ""
    says = (
        f"the teacher has {found.as_is:.3f} as it is, and {found.accuracy:.3f} with its classes in "
        f"another order ({told}{more})"
    )
    advice = "bring its outputs into the labels' order (sort the classes as it was trained on)"
    return Finding("classes", "bad", says, advice)


def outputs(seen: Seen) -> Finding:
    """Does the teacher give logits where logits are read?"""
    if seen.softmaxed:
        says = (
            "the teacher's outputs are probabilities (all in 0..1, each row sums to 1), and are "
            "read as logits: softened once more they are nearly uniform"
        )
        advice = "let it return logits (no softmax at its end), or p.clamp_min(1e-12).log() of them"
        return Finding("outputs", "bad", says, advice)
    t = seen.answers.get(("teacher", "train"))
    if t is None:
        return _unknown("outputs", seen, "the teacher was not asked")
    return Finding("outputs", "good", f"the teacher gives {'labels' if t.hard else 'logits'}")


def _not_tried(seen: Seen) -> str:
    """Whether the usual scales of the inputs were tried, as the end of a sentence."""
    if seen.scales:
        return "none of the usual scales of its inputs helps"
    teacher = seen.task.the_teacher() if seen.task else None
    why = "its inputs are no numbers that can be scaled"
    if isinstance(teacher, BlackBox):
        why = "each would be asked of its server"
    elif isinstance(teacher, Cached):
        why = "a cache of answers takes no inputs"
    return f"other scales of its inputs were not tried, since {why}"


def inputs(seen: Seen) -> Finding:
    """Is the teacher fed as it was trained?"""
    if seen.inputs is not None:
        says = (
            f"the teacher has {seen.inputs.as_is:.3f} on the inputs as they are, and "
            f"{seen.inputs.accuracy:.3f} when {seen.inputs.what}"
        )
        advice = "give it a reader that does so: Task(..., readers={'teacher': f})"
        return Finding("inputs", "bad", says, advice)
    t = seen.answers.get(("teacher", "train"))
    if t is None:
        value = seen.score("teacher", "held")
        if value is None:
            return _unknown("inputs", seen, "the teacher was not asked")
        return Finding("inputs", "unknown", f"the teacher has {value:.3f}; the records say no more")
    share = float(torch.bincount(t.y).max()) / len(t)
    if t.accuracy < min(limits.CHANCE * share, share + limits.ABOVE, limits.SURE):
        says = (
            f"the teacher is at chance on the training set ({t.accuracy:.3f}; always saying the "
            f"most frequent class gives {share:.3f}), and {_not_tried(seen)}"
        )
        advice = (
            "check that its weights were loaded (--pretrained no has it trained first), and what "
            "its inputs looked like in training"
        )
        if seen.raised:
            advice = "this run trained it, and it learned nothing: train it longer, or elsewhere"
        return Finding("inputs", "bad", says, advice)
    return Finding("inputs", "good", f"the teacher has {t.accuracy:.3f} on the training set")


def calibration(seen: Seen) -> Finding:
    """Is the teacher as sure as it is right, on held-out samples?"""
    t = seen.answers.get(("teacher", "held"))
    if t is not None and not t.hard:
        told = measures.of_classes(t.logits, t.y)
        ece, sure, right = told["ece"], told["confidence"], t.accuracy
        n = len(t)
    else:
        side = seen.records.appraisal.get("sides", {}).get("teacher", {}) if seen.records else {}
        n = seen.samples.get("held", 0)
        if t is not None or side.get("ece") is None or not n or side.get("score") is None:
            return _unknown("calibration", seen, "the teacher gives no probabilities")
        ece, sure, right = side["ece"], side["confidence"], side["score"]
    says = f"the teacher's calibration error is {ece:.3f}: {sure:.3f} sure, {right:.3f} right"
    apart = abs(sure - right) > limits.NOISE * error_of(right, n)
    # a teacher that doubts too much still ranks the classes, and a temperature makes up for it
    least = limits.ECE_WATCH if sure > right else limits.ECE_BAD
    if ece < least or not apart:
        return Finding("calibration", "good", says)
    over = "surer than it is right" if sure > right else "less sure than it is right"
    advice = f"it is {over}; scale its logits on held-out samples, or take a higher temperature"
    state: State = "bad" if ece >= limits.ECE_BAD and sure > right else "watch"
    return Finding("calibration", state, says, advice)


def _of_records(seen: Seen) -> tuple[float, float | None, float | None] | None:
    told = seen.records.appraisal.get("agreement", {}) if seen.records else {}
    mine = told.get("student", {})
    if mine.get("top1") is None:
        return None
    return mine["top1"], mine.get("kl"), told.get("baseline", {}).get("top1")


def agreement(seen: Seen) -> Finding:
    """Do student and teacher answer alike?"""
    if seen.misread or "classes" in seen.faults:
        return Finding("agreement", "unknown", "not known: the teacher is fed or read wrongly")
    s, t = seen.answers.get(("student", "held")), seen.answers.get(("teacher", "held"))
    alone: float | None = None
    found = _of_records(seen)
    if s is not None and t is not None and s.logits.shape[1] == t.logits.shape[1]:
        n = min(len(s), len(t))  # of the same samples; a slow side was asked on fewer
        s, t = s.at(slice(n)), t.at(slice(n))
        top1, kl = _alike(s.logits, t.logits, t.hard)
        alone = found[2] if found else None
    elif found is not None:
        top1, kl, alone = found
    else:
        return _unknown("agreement", seen, "the two sides were not asked on the same samples")
    says = f"student and teacher give the same first class to {top1:.3f} of held-out samples"
    says += f", with a mean KL of {kl:.3f} nats" if kl is not None else ""
    says += f" (the student alone: {alone:.3f})" if alone is not None else ""
    n = seen.count("held")
    noise = limits.NOISE * error_of(top1, n) if n else 0.0
    if alone is not None and top1 < alone - max(limits.LESS, noise):
        advice = "the teaching did not reach the student: give the teacher's terms more weight"
        return Finding("agreement", "watch", says, advice)
    a, b = seen.score("student", "held"), seen.score("teacher", "held")
    if a is not None and b is not None and seen.classes > 1:
        by_chance = a * b + (1 - a) * (1 - b) / (seen.classes - 1)
        if top1 < by_chance - max(limits.APART, noise):
            advice = f"two independent judges this good agree on {by_chance:.3f}; look at the data"
            return Finding("agreement", "watch", says, advice)
    return Finding("agreement", "good", says)


def _alike(s: Tensor, t: Tensor, hard: bool) -> tuple[float, float | None]:
    told = measures.agreements({"student": s, "teacher": t.argmax(-1) if hard else t})["student"]
    return told["top1"], told.get("kl")
