"""Pictures with labels: methods for classifiers, and the maker of their tasks, `task`."""

from typing import TYPE_CHECKING, Any

__all__ = ["task"]

if TYPE_CHECKING:  # what an editor and a type checker see
    from limbeck.vision._kit.task import task

if not TYPE_CHECKING:  # hidden from type checkers, for which it would make any name a name of ours

    def __getattr__(name: str) -> Any:
        """Load the maker of tasks when it is first asked for (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module 'limbeck.vision' has no attribute {name!r}")
        from limbeck.vision._kit.task import task

        globals()["task"] = task
        return task


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
