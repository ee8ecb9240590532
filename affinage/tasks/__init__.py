"""One file a task, found by walking this folder; a task is a module-level `task` that keeps the contract of `types.Task`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from affinage.errors import AffinageError, choose
from affinage.types import Task


def every() -> Iterator[Task]:
    """Each task in this folder."""
    for module in pkgutil.iter_modules(__path__):
        yield importlib.import_module(f"{__name__}.{module.name}").task


def find(name: str | None, kind: str) -> Task:
    """The task of that name (a pipeline tag), or the one that reads this kind of data.

    Raises:
        AffinageError: no such task, or one that reads another kind of data.
    """
    tasks = {task.name: task for task in every()}
    if name is None:
        return next(task for task in tasks.values() if task.kind == kind)
    task = tasks[choose("task", name, tasks)]
    if task.kind != kind:
        fitting = ", ".join(t.name for t in tasks.values() if t.kind == kind)
        raise AffinageError(f"task {name} reads {task.kind} data, but this is {kind} data: use --task {fitting}")
    return task


def kind(name: str | None) -> str | None:
    """The kind of data that the task reads; None where no task was named and the data tells."""
    if name is None:
        return None
    tasks = {task.name: task for task in every()}
    return tasks[choose("task", name, tasks)].kind
