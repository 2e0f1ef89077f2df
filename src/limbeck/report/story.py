"""The sentences at the top of a run's page: what was taught to whom, and whether it helped."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from limbeck.report.reading import Told
from limbeck.report.words import wins

__all__ = ["caution", "source", "story", "title"]

FEW = 5
"""Seeds below which a difference is called an impression."""


def title(told: Told) -> str:
    """The page's title."""
    result = told.first.result
    if "score" in result:
        return f"A student taught by {told.method} on {source(told)}"
    return f"{told.method} on {source(told)}"


def source(told: Told) -> str:
    """The data, as they were asked for."""
    return told.asked("data") or told.asked("world") or str(told.first.run.get("world", "its task"))


def story(told: Told) -> Iterator[str]:
    """What was taught to whom, how well, and what the teacher was worth."""
    yield _who(told)
    student = told.scores("student")
    if student:
        yield _how_well(told, student)
        if doubt := str(told.first.result.get("doubt") or ""):
            yield f"{doubt[0].upper()}{doubt[1:]}."
        yield from _verdict(told, student)
    elif "scores" in told.first.result:
        scores = told.first.result["scores"]
        yield f"It gives no model but scores, of {len(scores)} candidates."
    else:
        yield "It gives no model that could be scored."


def _who(told: Told) -> str:
    t, s = (told.mean("sides", side, "parameters") for side in ("teacher", "student"))
    s = s if s is not None else told.first.result.get("parameters")
    name_t = told.asked("teacher")
    name_s = told.asked("student")
    teacher = f"The teacher{f' {name_t}' if name_t else ''}"
    student = f"a student{f', {name_s},' if name_s else ''}"
    if t:
        teacher += f" with {t:,.0f} parameters"
    if s:
        student += f" with {s:,.0f}{'' if t else ' parameters'}"
    if t and s:
        student += f" ({100 * s / t:.2g} % as many)"
    if not t and not told.scores("teacher") and not name_t:
        return f"{told.method} trained {student} on {source(told)}." if s else f"{told.method} ran."
    return f"{teacher} taught {student}, by the method {told.method}."


def _how_well(told: Told, student: list[float]) -> str:
    measure, teacher = told.measure, told.scores("teacher")
    count, name = told.first.at("samples"), told.first.result.get("score_of", "test")
    where = f"the {count:,} {name} samples" if count else f"the {name} set"
    line = f"On {where} the student's {measure.name} is {measure.told(student)}"
    if told.many:
        line += f" over {len(student)} seeds"
    line = f"{line}, the teacher's {measure.told(teacher)}." if teacher else f"{line}."
    return line + _by_chance(told, {"the teacher": teacher, "the student": student})


def _by_chance(told: Told, sides: Mapping[str, Sequence[float]]) -> str:
    """A sentence on sides that are hardly better than guessing."""
    classes = len(told.first.at("classes") or ())
    if told.measure.name != "accuracy" or classes < 2:
        return ""
    chance = 1 / classes
    most = chance + 0.1 * (1 - chance)
    near = [side for side, values in sides.items() if values and statistics.fmean(values) < most]
    if not near:
        return ""
    has = "has" if len(near) == 1 else "have"
    return (
        f" Guessing among {classes} classes would reach {told.measure.told([chance])}: "
        f"{' and '.join(near)} {has} learned next to nothing, so the rest of this page says little."
    )


def _verdict(told: Told, student: list[float]) -> Iterator[str]:
    measure, alone = told.measure, told.scores("baseline")
    if not alone:
        yield (
            "What the teacher was worth is not known: the same student was not trained without "
            "it. Add --baseline to the command (in Python baseline=True) to know."
        )
        return
    gains = measure.gain(student, alone)
    gain = statistics.fmean(gains)
    begin = f"Trained on the labels alone, the same student reaches {measure.told(alone)}"
    seeds = f", with the student better in {wins(gains, 'seeds')}" if told.many else ""
    if abs(gain) < 1e-9:
        yield f"{begin}: by this score the teaching changed nothing{seeds}."
    elif gain < 0:
        less = f"it gave {measure.size(gain)} less"
        yield f"{begin}: the teaching did not help here, {less}{seeds}."
    else:
        worth = f"{measure.size(gain)}{_gap(told, gain)}"
        yield f"{begin}, so the teaching is worth {worth}{seeds}."


def _gap(told: Told, gain: float) -> str:
    """How much of what the student lacked alone the teaching gave."""
    measure, teacher, alone = told.measure, told.scores("teacher"), told.scores("baseline")
    if not teacher:
        return ""
    gap = statistics.fmean(measure.gain(teacher, alone))
    if gap <= 0:
        return ", though the teacher itself is no better than the student alone"
    if gain >= gap:
        return ": all of the gap to the teacher, and more" if gain > gap else ": the whole gap"
    return f": {100 * gain / gap:.0f} % of the gap to the teacher"


def caution(told: Told) -> list[str]:
    """How much the verdict can be trusted."""
    student, alone = told.scores("student"), told.scores("baseline")
    if not student or len(student) >= FEW:
        return []
    out = []
    count, measure = told.first.at("samples"), told.measure
    if alone and count and measure.name == "accuracy":
        more = abs(statistics.fmean(measure.gain(student, alone))) * count
        if more > 1e-6:  # of none the verdict has spoken
            size = f"{more:.0f}" if more >= 1 else f"{more:.2g}"
            out.append(f"The difference is {size} of {count:,} samples.")
    few = "One seed gives" if len(student) == 1 else f"{len(student)} seeds give"
    out.append(f"{few} an impression, no proof; --seeds 12 shows how much is chance.")
    return out
