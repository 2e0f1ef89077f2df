"""The command `suggest`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limbeck import registry
from limbeck.cli import _flags as flags
from limbeck.cli import _tasks as tasks
from limbeck.cli._parser import Parser
from limbeck.core.card import call
from limbeck.errors import UsageError

if TYPE_CHECKING:
    from limbeck.core.task import Task
    from limbeck.report.advice import Advice

__all__ = ["suggest"]

_MOST, _TRIED = 5, 12  # methods that are told, and that are tried on the task at most


def suggest(argv: list[str]) -> int:
    """Name a few methods that are worth trying on a task, with the evidence for each."""
    parser = Parser(
        "suggest",
        "Name three to five methods worth trying on a task, each with its evidence: the\n"
        "leaderboard where classes are learned, else trials on tasks of the same kind. Each\n"
        "was tried for a few steps on your models, in memory, so that it runs.",
        (
            "limbeck suggest --teacher timm:resnet50 --student timm:resnet18 --data photos/",
            "limbeck suggest --world \"digits(student='vit-small')\"",
        ),
        more="The evidence is of small tasks, and says so. Where there is none for a kind of "
        "task, that is the answer.",
        usage="[options]",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the short tries (0)")
    flags.add_task(parser)
    flags.add_budget(parser)
    args = parser.parse_args(argv)
    request = {"method": None, "seed": args.seed, **flags.asked(args, None)}

    flags.load_torch()
    task = tasks.task_of(request)
    for note in task.notes:
        print(f"{note} ...", file=sys.stderr)
    kind = _kind(task)
    found, refused = _that_run(_evidence(kind, task), task, request, args)
    if not found:
        why = f"; {len(refused)} with evidence do not run here: {refused[0]}" if refused else ""
        print(f"There is no evidence for this kind of task ({kind}){why}.")
        return 0
    print(f"Worth trying, where {kind} are learned:\n")
    for number, one in enumerate(found, 1):
        print(f"{number}. {one.key}: {one.why}\n   {_command(one, argv)}\n")
    _tell(kind)
    return 0


def _kind(task: Task) -> str:
    """What is learned, in the words of `advice.KINDS_OF_WORLDS`, or "classes"."""
    from limbeck.core.text.facts import MaskedText, TaggedText
    from limbeck.core.text.seq2seq import is_pair

    text = task.data.get("text")
    batch = task.batches().first()
    if isinstance(text, MaskedText):
        return "hidden tokens"
    if isinstance(text, TaggedText):
        return "tags of tokens"
    if text is not None:
        return "texts for texts" if is_pair(batch) else "next tokens"
    if batch.y is not None and batch.y.dim() == 2:
        return "several labels of a sample"
    return "classes"


def _evidence(kind: str, task: Task) -> list[Advice]:
    from limbeck.report import advice
    from limbeck.report.leaderboard import standings
    from limbeck.report.trials import all_told

    told = standings() if kind == "classes" else {}
    if told:
        return advice.of_grid(told, all_told(), _across(task))
    found = advice.of_trials(kind, all_told())
    return [one for one in found if registry.find(one.key).card.gives == "model"]


def _across(task: Task) -> bool:
    """Whether the sides are of different architectures, as far as their classes tell."""
    from limbeck.core.teachers import Frozen

    teacher = task.the_teacher()
    if not isinstance(teacher, Frozen):
        return False
    return type(teacher.module) is not type(task.new_student(0))


def _that_run(
    found: Sequence[Advice], task: Task, request: dict[str, Any], args: Any
) -> tuple[list[Advice], list[str]]:
    """Those that run for a step on the task, five at most; and why others do not."""
    from limbeck.core.dry import look

    good: list[Advice] = []
    refused: list[str] = []
    for one in found[:_TRIED]:
        try:
            here = tasks.with_taps(task, tasks.read_by(one.key, {})) if request["own"] else task
            for _ in look(one.key, here, args.seed, args.device, {}):
                pass
        except UsageError as error:
            refused.append(f"{one.key}: {error}")
            continue
        good.append(one)
        if len(good) == _MOST:
            break
    return good, refused


def _command(one: Advice, argv: Sequence[str]) -> str:
    name, values = call(one.setting)
    own = {k: v for k, v in values.items() if k not in ("lr_factor", "epochs", "steps", "batch")}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in own.items()]
    return shlex.join(["limbeck", "run", name, *argv, *words])


def _tell(kind: str) -> None:
    from limbeck.report.leaderboard import standings

    if kind != "classes" or not (found := standings()):
        return
    told = found["advice"]
    lost = {k: 100 * told[k] for k in ("suggested", "kd", "random")}
    print(
        f"How good such advice is: on tasks of the grid that it had not seen, its first method was "
        f"{lost['suggested']:.1f} points behind the best; KD {lost['kd']:.1f}, a method at random "
        f"{lost['random']:.1f}."
    )
