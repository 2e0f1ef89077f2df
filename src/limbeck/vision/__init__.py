"""Pictures with labels: methods for classifiers, and the maker of their tasks, `task`."""

from limbeck.vision._kit.task import task

__all__ = ["task"]
