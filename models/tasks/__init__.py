"""Tasks: data, preprocessing, sample ids, metric."""

from __future__ import annotations

from edgewise.models.tasks.base import Split, Task, accuracy

__all__ = ["Split", "Task", "accuracy"]
