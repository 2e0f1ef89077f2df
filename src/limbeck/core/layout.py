"""What a model is made of, and where in two of them the same things can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from limbeck.core import stages
from limbeck.core.crowd import Crowd
from limbeck.core.data import Table, reader_of
from limbeck.core.task import Task, build_model
from limbeck.core.teacher import Teacher
from limbeck.core.teachers import Frozen
from limbeck.core.tracing import Pass, Seen, entries, tensors, trace
from limbeck.core.untrained import Untrained
from limbeck.errors import UsageError

__all__ = ["Row", "modules", "propose"]

ENTRIES = ("mid", "feature", "embedding", "blocks")
"""The entries of a view that can be found in any model."""


@dataclass(frozen=True)
class Row:
    """A module of a model: path, kind, shape of its output, number of parameters in it.

    The shape is text as "(B, 64, 8, 8)"; empty for a module that did not run or gives no tensor.
    """

    path: str
    kind: str
    shape: str
    parameters: int


def modules(model: nn.Module, x: Any = None) -> list[Row]:
    """All modules of a model, in the order in which it holds them.

    Args:
        model: the model; left as it was.
        x: a batch that it takes, for the shapes; None for none.

    Raises:
        UsageError: it does not take such a batch.
    """
    seen = Pass() if x is None else trace(model, x)
    found = []
    for path, module in model.named_modules():
        ran = seen.seen.get(path)
        out = None if ran is None else ran.out
        if path == "" and x is not None:
            out = next((v for v in entries(seen.output).values() if isinstance(v, Tensor)), None)
        count = sum(p.numel() for p in module.parameters() if not _lazy(p))
        shape = "" if out is None else _shape(out, seen.batch)
        found.append(Row(path, type(module).__name__, shape, count))
    return found


def _lazy(p: Tensor) -> bool:
    return torch.nn.parameter.is_lazy(p)


def _shape(tensor: Tensor, batch: int) -> str:
    sizes = list(map(str, tensor.shape))
    if sizes and tensor.shape[0] == batch:
        sizes[0] = "B"
    return f"({', '.join(sizes)})"


# -- where entries can be read ---------------------------------------------------------------------


def propose(task: Task, wanted: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Taps for entries that a method reads, where models do not give them by themselves.

    `embedding` is the input of the last linear layer, a vector (B, D). `feature` is the last map
    (B, C, H, W) before pooling, without maps the last tokens (B, T, D), without both the embedding.
    `mid` lies in the middle: of the outputs before each change of a map's size (where both sides
    have maps, of one that is as large on both), or half-way through a row of equal blocks.
    `blocks` are the last of each size of map within the module where most sizes are, or all blocks
    of such a row. Only modules are named that run once and whose output nobody changes in place.

    Args:
        task: its teacher and student, readers and train are used.
        wanted: of `ENTRIES`, for both sides, or as "student:blocks"; others are left out.

    Returns:
        For each entry the paths (teacher, student), as `Task.taps` takes them; of a crowd a tuple
        of paths, and None where a side has no module, gives the entry itself or was not asked for.

    Raises:
        UsageError: there is no such place in one of the models.
    """
    asked = set(wanted)
    both = {s: [n for n in ENTRIES if asked & {n, f"{s}:{n}"}] for s in ("teacher", "student")}
    if not any(both.values()):
        return {}
    x = Table(task.set("train"), "train").rows(torch.arange(2), "layout").columns["x"]
    mine = _Side("student", build_model(task.student, 0, "student"), _read(task, "student", x))
    every = _teachers(task, x)
    taps: dict[str, tuple[Any, Any]] = {}
    for name in ENTRIES:
        teachers: list[_Side | None] = every if name in both["teacher"] else [None]
        student = mine if name in both["student"] else None
        if name == "mid":
            theirs, own = _mids(teachers, student)
        else:
            theirs, own = [t and t.path(name) for t in teachers], student and student.path(name)
        if any(theirs) or own:
            taps[name] = (tuple(theirs) if len(theirs) > 1 else theirs[0], own)
    return taps


def _read(task: Task, side: str, x: Any) -> Any:
    reader = reader_of(task.readers, side)
    return x if reader is None else reader(x)


def _teachers(task: Task, x: Any) -> list[_Side | None]:
    """The teacher's modules, each run once; None for one that has none."""
    teacher = task.the_teacher()
    members: list[Any] = list(teacher.teachers) if isinstance(teacher, Crowd) else [teacher]
    reader = reader_of(task.readers, "teacher")
    readers = reader if isinstance(reader, tuple) else (reader,) * len(members)
    return [
        _side_of(member, x if read is None else read(x))
        for member, read in zip(members, readers, strict=True)
    ]


def _side_of(teacher: Teacher, x: Any) -> _Side | None:
    if isinstance(teacher, Frozen):
        return _Side("teacher", teacher.module, x)
    return _Side("teacher", teacher.new(), x) if isinstance(teacher, Untrained) else None


class _Place(NamedTuple):
    """Where `mid` may be read, with the size (H, W) of the map there."""

    path: str
    size: tuple[int, ...] | None


class _Side:
    """What one model shows in a pass, and the places where it can be read."""

    def __init__(self, side: str, model: nn.Module, x: Any) -> None:
        self.side, self.model, self.ran = side, model, trace(model, x)
        self.gives = {k for k, v in entries(self.ran.output).items() if tensors(v)}
        self._ends = {t.data_ptr() for t in (*tensors(self.ran.output), *tensors(x))}
        wide = self._that(lambda out: out.dim() > 2 and (out.dim() == 3 or out[0, 0].numel() > 1))
        # The last tells what the model works on: those of maps make vectors, those of tokens maps.
        self.rank = stages.rank(wide[-1]) if wide else 2
        self.every = [seen for seen in wide if stages.rank(seen) == self.rank]
        self.wide = stages.outermost(self.every)

    def _that(self, fits: Callable[[Tensor], bool]) -> list[Seen]:
        """The outputs that fit, in their order.

        Neither the model's own inputs and outputs, nor a pooling layer's, nor what a later module
        changes in place.
        """
        found = []
        for seen in self.ran.seen.values():
            out = seen.out
            if out is None or seen.runs > 1 or out._version != seen.version or not fits(out):
                continue
            inside = len(out) == self.ran.batch and out.data_ptr() not in self._ends
            if inside and "pool" not in seen.kind.lower():
                found.append(seen)
        return found

    def _linear(self) -> list[tuple[str, Tensor]]:
        """The linear layers that take vectors (B, D) which the model has made, with these."""
        return [
            (seen.path, seen.given)
            for seen in self.ran.seen.values()
            if isinstance(self.model.get_submodule(seen.path), nn.Linear)
            and seen.runs == 1
            and seen.given is not None
            and seen.given.dim() == 2
            and seen.given.data_ptr() not in self._ends
        ]

    def path(self, entry: str) -> str | list[str] | None:
        """Where to read any entry but `mid`; None where the model gives it by itself."""
        if entry in self.gives:
            return None
        if entry == "blocks":
            paths = [place.path for place in self.places(entry)]
            modules = [self.model.get_submodule(path.partition(":")[0]) for path in paths]
            weighs = [any(w.dim() > 1 for w in module.parameters()) for module in modules]
            # A first one that normalises or activates alone is the end of a stem.
            return paths[weighs.index(True) :] if sum(weighs) > 1 else paths
        if entry == "feature" and self.wide:
            self._readable(entry)
            return self.wide[-1].path
        linear = self._linear()
        if not linear:
            self._refuse(entry, "no linear layer in it that takes vectors (B, D) of its making")
        return f"{linear[-1][0]}:in"

    def places(self, entry: str) -> list[_Place]:
        """Stages, blocks or layers, in their order; none where the model gives the entry itself."""
        if entry in self.gives:
            return []
        self._readable(entry)
        found = stages.inner_stages(self.every) if entry == "blocks" else stages.stages(self.wide)
        if self.rank != 4 or len(found) < 2:
            found = stages.blocks(self.every)
        places = [_Place(seen.path, stages.size(seen)) for seen in found]
        if not places:
            vectors = stages.outermost(self._that(lambda out: out.dim() == 2))
            givers = {stages.key(s.out): s.path for s in vectors}
            places = [_Place(givers.get(stages.key(x), f"{p}:in"), None) for p, x in self._linear()]
        if not places:
            self._refuse(entry, "no map, no tokens and no hidden vector that a module gives")
        return places

    def _readable(self, entry: str) -> None:
        if self.rank not in (2, 3, 4):
            self._refuse(entry, "neither a map (B, C, H, W) nor tokens (B, T, D) at the end of it")

    def _refuse(self, entry: str, why: str) -> NoReturn:
        raise UsageError(
            f"no place for '{entry}' was found in the {self.side} ({type(self.model).__name__}): "
            f'there is {why}; name one, as taps={{"{entry}": ("teacher path", "student path")}}'
        )


def _mids(teachers: list[_Side | None], student: _Side | None) -> tuple[list[Any], Any]:
    """The paths of `mid` in the teachers and in the student."""
    theirs = [[] if t is None else t.places("mid") for t in teachers]
    own = _central(student.places("mid") if student else [], next(filter(None, theirs), []))
    found = [_central(places, [own] if own else []) for places in theirs]
    return [p and p.path for p in found], own and own.path


def _central(places: list[_Place], like: list[_Place]) -> _Place | None:
    """The place nearest to the middle, if there is one of those with a map as large as another's.

    The last is where `feature` lies, and taken only if it is the only one.
    """
    inner, middle = places[:-1] or places, (len(places) - 1) // 2
    sizes = {p.size for p in (like[:-1] or like) if p.size}
    same = [p for p in inner if p.size in sizes] or inner
    return min(same, key=lambda p: abs(places.index(p) - middle), default=None)
