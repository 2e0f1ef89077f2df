"""Questions about the teacher: is it better, fed and read rightly, calibrated."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from limbeck.core.teachers import BlackBox, Cached
from limbeck.doctor import limits
from limbeck.doctor.numbers import error_of
from limbeck.doctor.proposals import (
    Command,
    anew,
    augmented,
    of_library,
    teacher_longer,
    value_of,
)
from limbeck.doctor.seen import Seen
from limbeck.doctor.sides import Answers
from limbeck.doctor.words import Finding, State, again
from limbeck.runs import measures


def better(seen: Seen, command: Command) -> Finding:
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
        found = seen.unknown("teacher", "no accuracy of both sides on held-out samples")
        if t is None:
            return found
        says = f"the teacher has {t:.3f} on {seen.held_out}; the student's is not known"
        return replace(found, says=says)
    side = max(others, key=lambda k: others[k])
    s, n = others[side], seen.count("held")
    noise = limits.NOISE * (error_of(t, n) ** 2 + error_of(s, n) ** 2) ** 0.5 if n else 0.02
    who = {"alone": "the student alone", "student": "the student"}[side]
    when = "" if after else f" after {seen.steps} steps"
    fed = " (once it is fed and read rightly)" if seen.misread else ""
    many = f"{n} " if n else ""
    says = f"the teacher has {t:.3f}{fed} on {many}{seen.held_out}, {who} {s:.3f}{when}"
    own = seen.score("teacher", "train")
    if own is not None and own < limits.LEARNED and not seen.misread:
        says += f", and is right on {own:.3f} of the training samples only"
        proposed, note = teacher_longer(seen, command)
        advice = f"train the teacher longer: it has learned little{note}"
        return Finding("teacher", "bad", says, advice, proposed)
    if seen.at_chance:
        proposed, note = augmented(seen, command)
        advice = f"it knows nothing of new samples: give more{', or augment them' * bool(proposed)}"
        return Finding("teacher", "bad", f"{says}: it is at chance", advice + note, proposed)
    if t > s or (after and side == "student" and t > s - noise):
        return Finding("teacher", "good", says)
    if s - t <= noise and noise > limits.TELLS:
        says += f"; {n} samples are too few to tell them apart"
        return Finding("teacher", "unknown", says)
    proposed, note = teacher_longer(seen, command)
    advice = f"take a better teacher, or train this one longer: it has little to teach{note}"
    taught = after and side == "student"  # it may well outgrow a teacher that helped it
    state: State = "bad" if t < s - noise and not taught else "watch"
    return Finding("teacher", state, says, advice, proposed)


def classes(seen: Seen) -> Finding:
    """Do the teacher's classes stand in the order of the labels?"""
    if "classes" in seen.faults:
        advice = "give a teacher with a head for these classes, or retrain its head on these data"
        return Finding("classes", "bad", seen.faults["classes"], advice)
    found = seen.order
    if found is None:
        t = seen.answers.get(("teacher", "held"), seen.answers.get(("teacher", "train")))
        if t is None:
            return seen.unknown("classes", "the teacher was not asked")
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
        return seen.unknown("outputs", "the teacher was not asked")
    teacher = seen.task.the_teacher() if seen.task else None
    gives = teacher.gives if isinstance(teacher, BlackBox) else "logits"
    return Finding("outputs", "good", f"the teacher gives {'labels' if t.hard else gives}")


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


def inputs(seen: Seen, command: Command) -> Finding:
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
            return seen.unknown("inputs", "the teacher was not asked")
        return Finding("inputs", "unknown", f"the teacher has {value:.3f}; the records say no more")
    share = float(torch.bincount(t.y).max()) / len(t)
    if t.accuracy < min(limits.CHANCE * share, share + limits.ABOVE, limits.SURE):
        says = (
            f"the teacher is at chance on the training set ({t.accuracy:.3f}; always saying the "
            f"most frequent class gives {share:.3f}), and {_not_tried(seen)}"
        )
        proposed: str | None
        advice = "check that its weights were loaded, and what its inputs looked like in training"
        if seen.raised:
            proposed, note = teacher_longer(seen, command)
            advice = f"this run trained it, and it learned nothing: train it longer{note}"
        else:
            proposed, note = _untrained(seen, command)
            advice += note
        return Finding("inputs", "bad", says, advice, proposed)
    return Finding("inputs", "good", f"the teacher has {t.accuracy:.3f} on the training set")


def _untrained(seen: Seen, command: Command) -> tuple[str | None, str]:
    """The command whose run trains the teacher first, where it is named in a library's words."""
    teacher = value_of(command, "--teacher") or ""
    if not of_library(teacher) or seen.trained_by_run:
        return None, ""
    bare = {"--teacher": teacher.partition("@")[0], "--pretrained": "no"}
    proposed, _ = anew(seen, command, bare)
    return proposed, "; --pretrained no has the run train it first"


def calibration(seen: Seen, command: Command) -> Finding:
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
            return seen.unknown("calibration", "the teacher gives no probabilities")
        ece, sure, right = side["ece"], side["confidence"], side["score"]
    says = f"the teacher's calibration error is {ece:.3f}: {sure:.3f} sure, {right:.3f} right"
    apart = abs(sure - right) > limits.NOISE * error_of(right, n)
    # a teacher that doubts too much still ranks the classes, and a temperature makes up for it
    least = limits.ECE_WATCH if sure > right else limits.ECE_BAD
    if ece < least or not apart:
        return Finding("calibration", "good", says)
    over = "surer than it is right" if sure > right else "less sure than it is right"
    advice = f"it is {over}; scale its logits on held-out samples"
    tau, scale = getattr(seen.method, "tau", None), _scale(t) if t is not None else 1.0
    proposed = None
    if isinstance(tau, int | float) and scale > 1:
        advice += f", or take a higher temperature: {scale:g} times that of the method"
        proposed = again(command, {"--tau": float(f"{tau * scale:.2g}")})
    state: State = "bad" if ece >= limits.ECE_BAD and sure > right else "watch"
    return Finding("calibration", state, says, advice, proposed)


def _scale(t: Answers) -> float:
    """The temperature, of a few, at which a teacher's answers are nearest to the labels."""
    return min(limits.TAUS, key=lambda c: float(F.cross_entropy(t.logits.double() / c, t.y)))
