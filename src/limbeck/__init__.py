"""limbeck teaches small things what large things know: knowledge distillation for PyTorch.

    import limbeck
    result = limbeck.run("kd", limbeck.Task(teacher=..., student=..., train=..., test=...))

`limbeck.cards()` lists the methods and `limbeck.get(key)` gives one; `limbeck --help` says what
the command line does. Importing this package imports neither torch nor any method: each name is
loaded when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Batches",
    "Beside",
    "BlackBox",
    "Budget",
    "Cached",
    "Card",
    "Crowd",
    "Ema",
    "Frozen",
    "Given",
    "Labels",
    "Mean",
    "Method",
    "Nobody",
    "Objective",
    "Optimiser",
    "PerTerm",
    "Phase",
    "Result",
    "Routed",
    "Score",
    "Sum",
    "Surgery",
    "Task",
    "Total",
    "Untrained",
    "UsageError",
    "cache_teacher",
    "cards",
    "export",
    "fit",
    "get",
    "loop",
    "make",
    "rng",
    "run",
    "stage",
]

if TYPE_CHECKING:  # what an editor and a type checker see
    from limbeck.core.caching import cache_teacher
    from limbeck.core.card import Card
    from limbeck.core.crowd import Crowd
    from limbeck.core.data import Batch, Batches, Beside
    from limbeck.core.ema import Ema
    from limbeck.core.engine import fit
    from limbeck.core.method import Given, Mean, Method, Objective, Result
    from limbeck.core.objectives import Labels, Sum
    from limbeck.core.run import loop, rng, stage
    from limbeck.core.score import Score
    from limbeck.core.task import Budget, Optimiser, Task
    from limbeck.core.teachers import BlackBox, Cached, Frozen, Nobody
    from limbeck.core.untrained import Untrained
    from limbeck.core.updates import PerTerm, Phase, Routed, Surgery, Total
    from limbeck.errors import UsageError
    from limbeck.registry import cards, get, make
    from limbeck.runs.door import run
    from limbeck.runs.export import export

_NAMES = {
    "core.caching": "cache_teacher",
    "core.card": "Card",
    "core.crowd": "Crowd",
    "core.data": "Batch Batches Beside",
    "core.ema": "Ema",
    "core.engine": "fit",
    "core.method": "Given Mean Method Objective Result",
    "core.objectives": "Labels Sum",
    "core.run": "loop rng stage",
    "core.score": "Score",
    "core.task": "Budget Optimiser Task",
    "core.teachers": "BlackBox Cached Frozen Nobody",
    "core.untrained": "Untrained",
    "core.updates": "PerTerm Phase Routed Surgery Total",
    "errors": "UsageError",
    "registry": "cards get make",
    "runs.door": "run",
    "runs.export": "export",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

if not TYPE_CHECKING:  # hidden from type checkers, for which it would make any name a name of ours

    def __getattr__(name: str) -> Any:
        """Load a public name from its module, or a room, when it is first asked for (PEP 562)."""
        from importlib import import_module

        if name in _rooms():
            return import_module(f"limbeck.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
        value = getattr(import_module(f"limbeck.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def _rooms() -> tuple[str, ...]:
    """The folders of methods: `limbeck.vision.task` needs no import of its own."""
    from limbeck._shelf import ROOMS

    return ROOMS


def __dir__() -> list[str]:
    return sorted({*__all__, *_rooms(), *(name for name in globals() if name.startswith("__"))})
