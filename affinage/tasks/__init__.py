"""One file a task, found by walking this folder; a task is a module-level `task` that keeps the contract of `types.Task`."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from affinage.errors import AffinageError, choose
from affinage.types import Labels, Task

EMPTY: Mapping[str, Any] = {}


def every() -> Iterator[Task]:
    """Each task in this folder."""
    for module in pkgutil.iter_modules(__path__):
        yield importlib.import_module(f"{__name__}.{module.name}").task


def find(name: str | None, kind: str, labels: Labels = "class", options: Mapping[str, Any] = EMPTY) -> Task:
    """The task of that name (a pipeline tag), or the one that reads this kind of data with these labels.

    `options`: settings; those that are fields of the task are put into it.

    Raises:
        AffinageError: no such task, or one that reads another kind of data.
    """
    tasks = {task.name: task for task in every()}
    if name is None:
        found = next((task for task in tasks.values() if (task.kind, task.labels) == (kind, labels)), None)
        if found is None:
            raise AffinageError(f"no task learns from {kind} data with a {labels} a row: name one of {', '.join(tasks)}")
        return _with(found, options)
    task = tasks[choose("task", name, tasks)]
    if task.kind != kind:
        fitting = ", ".join(t.name for t in tasks.values() if t.kind == kind)
        raise AffinageError(f"task {name} reads {task.kind} data, but this is {kind} data: use --task {fitting}")
    if task.labels != labels:
        raise AffinageError(f"task {name} learns from a {task.labels} a row, but this data has a {labels}: use another --task")
    return _with(task, options)


def _with(task: Task, options: Mapping[str, Any]) -> Task:
    own = {field.name for field in dataclasses.fields(task)} & options.keys()  # type: ignore[arg-type]
    return dataclasses.replace(task, **{name: options[name] for name in own}) if own else task  # type: ignore[type-var]


def wanted(name: str | None) -> tuple[str | None, Labels | None]:
    """(the kind of data that the task reads, what labels); None where no task was named and the data tells."""
    if name is None:
        return None, None
    tasks = {task.name: task for task in every()}
    task = tasks[choose("task", name, tasks)]
    return task.kind, task.labels
