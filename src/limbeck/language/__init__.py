"""Language models: methods for causal models and encoders, and the maker of their tasks, `task`."""

from limbeck.language._kit.task import task

__all__ = ["task"]
