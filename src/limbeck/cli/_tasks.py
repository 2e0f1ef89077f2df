"""The task that a command line asks for, and the values of its flags."""

from __future__ import annotations

import ast
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import Missing, UsageError

if TYPE_CHECKING:
    from limbeck.core.task import Task


def task_of(request: dict[str, Any]) -> Task:
    """The task that was asked for, with the budget that was asked for."""
    if request["task_file"]:
        task = load_task(request["task_file"])
    else:
        from limbeck.bench import worlds

        task = worlds.make(request["world"], seed=request["seed"])
    if request["epochs"] or request["steps"]:
        budget = replace(task.budget, epochs=request["epochs"], steps=request["steps"])
        task = replace(task, budget=budget)
    return task


def load_task(where: str) -> Task:
    """The task that FILE.py:FUNCTION makes.

    Raises:
        UsageError: there is no such file or function, or it does not give a Task.
    """
    from limbeck.core.task import Task

    file, _, name = where.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"limbeck_task_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise Missing(f"{file or where} is no Python file; give the task as FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{file}, line {error.lineno}: {error.msg}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise Missing(f"{file} has no function '{name}'")
    task = function()
    if not isinstance(task, Task):
        raise UsageError(f"{file}:{name} gave a {type(task).__name__}; it must give a limbeck.Task")
    return task


def value(text: str) -> Any:
    """A flag's text as the literal that it is, or as text."""
    plain = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    try:
        return ast.literal_eval(plain)
    except (ValueError, SyntaxError):
        return text


def tuples(given: dict[str, Any]) -> dict[str, Any]:
    """Field values with tuples, where JSON had made lists of them."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
