"""`renewed`: a model that is trained anew on twice the digits that its forerunner saw."""

from dataclasses import replace

from limbeck.bench.worlds import digits
from limbeck.bench.worlds._build import whole
from limbeck.core.task import Task


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task of `digits` with a teacher that was trained on half of its training pictures.

    The teacher is the model in use, of the student's own kind, so what counts is how many of its
    answers a new one keeps.

    Args:
        teacher: a family; the student's by default.
        student: a family; 'cnn-small' by default.
        seed: of the run; makes no difference here.
        tiny: 192 pictures and 24 steps.
        n: training pictures; 500 by default.
        data_seed: of the split.
    """
    n = whole("n", n or (192 if tiny else 500), 128, 1000)
    student = student or ("cnn-tiny" if tiny else "cnn-small")
    teacher = teacher or student
    old = digits.task(teacher=teacher, student=student, tiny=tiny, n=n // 2, data_seed=data_seed)
    new = digits.task(teacher=teacher, student=student, tiny=tiny, n=n, data_seed=data_seed)
    return replace(new, teacher=old.teacher, name="renewed")
