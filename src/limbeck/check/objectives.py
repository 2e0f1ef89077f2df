"""Checks on what is asked and what moves in the fits of a run."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.check.case import NO_FIT, Case, NotApplicable
from limbeck.check.look import modules_of
from limbeck.check.seen import Seen
from limbeck.core.method import Objective
from limbeck.errors import UsageError

__all__ = ["OBJECTIVES", "fits_of"]


def fits_of(case: Case) -> list[Seen]:
    """What was seen of each fit.

    Raises:
        NotApplicable: the method does not run, or has none.
    """
    fits = case.watched.fits
    if not fits:
        raise NotApplicable(NO_FIT)
    return fits


def _examined(case: Case, name: str) -> Iterator[str]:
    """What was said while the run went on."""
    fits_of(case)
    said, why = case.watched.said.get(name, []), case.watched.unseen.get(name, [])
    if why and all(why) and not said:
        raise NotApplicable(why[0])
    yield from dict.fromkeys(said)


def pure(case: Case) -> Iterator[str]:
    """Asking for the terms twice gives the same, to the bit, and changes nothing."""
    for seen in fits_of(case):
        yield from dict.fromkeys(seen.impure)


def terms(case: Case) -> Iterator[str]:
    """The names of a phase's terms are the same at every step."""
    for seen in fits_of(case):
        for phase, names in seen.names.items():
            differ = sorted({n for each in names for n in each if any(n not in e for e in names)})
            if differ:
                told = f"{seen.passes.stage}{f', phase {phase}' if phase else ''}"
                yield f"{told}: the term '{differ[0]}' is there at some steps only"


def weights(case: Case) -> Iterator[str]:
    """Each term has a weight field of its name, grows with it, and is not computed at zero."""
    yield from _examined(case, "weights")
    if not isinstance(case.method, Objective):
        return
    names = [n for n in case.start.terms if n in case.fields and getattr(case.method, n)]
    for name in names if len(names) > 1 else ():
        try:
            if name in case.first(case.changed(**{name: 0.0})).terms:
                yield f"the term '{name}' is in the log though its weight is zero"
        except UsageError as error:
            if name not in str(error):
                yield f"with the weight '{name}' at zero it says only: {error}"


def gradients(case: Case) -> Iterator[str]:
    """Over the run and its phases, gradients reach the student and every trainable part."""
    fits = fits_of(case)
    for seen in fits:
        for name in seen.trainable:
            if name.startswith("parts.") and name not in seen.reached:
                yield f"{seen.passes.stage}: no gradient reaches '{name}'"
    students = {id(seen.passes.student): seen for seen in fits}
    for number, seen in students.items():
        mine = [s for s in fits if id(s.passes.student) == number]
        if not any(n.startswith("student.") for s in mine for n in s.reached):
            yield f"{seen.passes.stage}: no gradient reaches the student"


def teacher(case: Case) -> Iterator[str]:
    """The task's teacher is asked in eval mode, and stays as it was in all its parts."""
    if not modules_of(case.watched.task.the_teacher()):
        raise NotApplicable("its world has no teacher")
    yield from dict.fromkeys(case.watched.teacher)


def after_step(case: Case) -> Iterator[str]:
    """`after_step` is called once a step, and moves neither student nor teacher."""
    for seen in fits_of(case):
        if seen.after != list(range(len(seen.after))):
            yield f"{seen.passes.stage}: after_step was not called once a step"
        yield from dict.fromkeys(seen.moved)


def counts(case: Case) -> Iterator[str]:
    """Each `Mean` term has the count that the objective told from the batch alone."""
    fits = fits_of(case)
    found = [said for seen in fits for said in dict.fromkeys(seen.counts)]
    if not found and not any(seen.means for seen in fits):
        raise NotApplicable("it has no Mean terms")
    yield from found


def edges(case: Case) -> Iterator[str]:
    """Terms and gradients are finite at the edges: extreme views, one sample, an empty class."""
    yield from _examined(case, "edges")
    train = case.task().train
    if isinstance(train, tuple) and len(train) > 1 and case.task().count_classes():
        y = train[1]
        keep = y != 0 if y.dim() == 1 else y[:, 0] == 0  # of several labels none may be the first
        some = case.task(train=tuple(c[keep] for c in train), classes=case.task().count_classes())
        try:
            case.brief(task=some)
        except Exception as error:
            yield f"with an empty class, it raises {type(error).__name__}: {error}"


def accumulate(case: Case) -> Iterator[str]:
    """Two half batches give together what the whole batch gives: terms, and their gradient."""
    return _examined(case, "accumulate")


def order(case: Case) -> Iterator[str]:
    """The order of the samples in a batch makes no difference."""
    return _examined(case, "order")


def doubled(case: Case) -> Iterator[str]:
    """A batch in which each sample stands twice has the same terms: they are means."""
    return _examined(case, "doubled")


OBJECTIVES = (
    *(pure, terms, weights, gradients, teacher, after_step, counts, edges),
    *(accumulate, order, doubled),
)
