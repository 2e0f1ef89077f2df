"""Taps: named modules of a model, read without editing it; only here do strings name modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from limbeck.errors import Missing, UsageError, nearest

Path = str | list[str]


class Enough(Exception):
    """Raised inside a forward pass when all that is wanted has been seen."""


def module_at(model: nn.Module, path: str, side: str = "model") -> nn.Module:
    """The submodule of that name, or a sentence with the nearest names."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [n for n, _ in model.named_modules() if n]
        raise Missing(
            f"the {side} ({type(model).__name__}) has no module '{path}'{nearest(path, names)}"
        ) from None


def _each(path: Path) -> list[str]:
    return [path] if isinstance(path, str) else list(path)


def _first_tensor(value: Any, path: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
        return value[0]
    raise UsageError(
        f"the tap '{path}' reads a {type(value).__name__}; tap a module that gives a tensor, or a "
        "tuple that begins with one"
    )


class Taps:
    """Hooks on a model that collect view entries of one forward pass at a time.

    Args:
        model: the model; left as it was by `close`.
        paths: entry -> "module", "module:in" (that module's input), or a list of such (the entry is
            a list).
        side: for messages.
    """

    def __init__(self, model: nn.Module, paths: Mapping[str, Path], side: str) -> None:
        self.paths = {name: path for name, path in paths.items() if path is not None}
        self._seen: dict[str, tuple[Tensor, int]] | None = None
        self._last: set[str] = set()  # what a pass that may stop early still waits for
        self._stop = False
        self._handles = []
        wanted = {p for path in self.paths.values() for p in _each(path)}
        for path in sorted(wanted):
            name, _, end = path.partition(":")
            module = module_at(model, name, side)
            if end not in ("", "in"):
                raise UsageError(
                    f"the tap '{path}' ends in ':{end}'; a path is 'module' for its output or "
                    "'module:in' for its input"
                )
            if end:
                self._handles.append(module.register_forward_pre_hook(self._hook_in(path)))
            else:
                self._handles.append(module.register_forward_hook(self._hook_out(path)))

    def _keep(self, path: str, value: Any) -> None:
        if self._seen is None:  # nobody looks: a checkpointed recomputation, the user's own call
            return
        if path in self._seen:
            raise UsageError(
                f"the module of the tap '{path}' runs more than once in a forward pass; tap one "
                "that runs once"
            )
        tensor = _first_tensor(value, path)
        self._seen[path] = (tensor, tensor._version)
        self._last.discard(path)
        if self._stop and not self._last:
            raise Enough

    def _hook_out(self, path: str) -> Any:
        return lambda module, args, output: self._keep(path, output)

    def _hook_in(self, path: str) -> Any:
        return lambda module, args: self._keep(path, args)

    def run(
        self, call: Any, only: frozenset[str] | None = None
    ) -> tuple[Any, dict[str, tuple[Tensor, int]]]:
        """One pass: (its output or None, what was seen by path).

        With `only` (entries), it stops after the last of them.
        """
        seen: dict[str, tuple[Tensor, int]] = {}
        self._seen = seen
        self._stop = only is not None
        self._last = {p for entry in only or () for p in _each(self.paths[entry])}
        try:
            return call(), seen
        except Enough:
            return None, seen
        finally:
            self._seen = None

    def entry(
        self, name: str, seen: Mapping[str, tuple[Tensor, int]]
    ) -> Tensor | list[Tensor] | None:
        """The entry from what a pass has seen, or None where that pass ended before it."""
        path = self.paths[name]
        if isinstance(path, str):
            return self._read(name, path, seen) if path in seen else None
        return [self._read(name, p, seen) for p in path] if all(p in seen for p in path) else None

    def _read(self, name: str, path: str, seen: Mapping[str, tuple[Tensor, int]]) -> Tensor:
        tensor, version = seen[path]
        if tensor._version != version:
            raise UsageError(
                f"the tap '{name}' at '{path}' was changed in place by a later module before it "
                "was read; tap that later module (often a ReLU(inplace=True)), or make it not in "
                "place"
            )
        return tensor

    def leave(self, copy: Iterable[nn.Module]) -> None:
        """Take these hooks off modules that were copied from the model together with them."""
        for module in copy:
            for handle in self._handles:
                module._forward_hooks.pop(handle.id, None)
                module._forward_pre_hooks.pop(handle.id, None)

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class UpTo(nn.Module):
    """A model up to and with one of its modules, whose output it gives as {entry: tensor}.

    What lies above never runs.
    """

    def __init__(self, model: nn.Module, path: str, entry: str) -> None:
        super().__init__()
        self.model = model
        self.path, self.entry = path, entry
        module_at(model, path.partition(":")[0], "student")

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """From what the model takes -> {entry: tensor}."""
        taps = Taps(self.model, {self.entry: self.path}, "student")
        try:
            _, seen = taps.run(lambda: self.model(*args, **kwargs), frozenset((self.entry,)))
        finally:
            taps.close()
        value = taps.entry(self.entry, seen)
        if not isinstance(value, Tensor):
            raise UsageError(
                f"the student's forward pass never runs the module '{self.path}'; tap one that it "
                "runs"
            )
        return {self.entry: value}
