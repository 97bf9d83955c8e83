"""What long work shows: progress bars on a terminal, plain lines in a log; always on stderr, stdout is for results."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Console(Protocol):
    """What the pipeline tells. ``stage(name)`` begins a stage; with ``seconds`` it has ended, with ``reused`` it was
    there already. ``tick`` is an ``edgewise.progress.Tick`` for the stage that runs."""

    def stage(self, name: str, *, reused: bool = False, seconds: float | None = None) -> None:
        """A stage begins, ends or is reused."""

    def tick(self, done: int, total: int, note: str) -> None:
        """The stage's progress."""

    def line(self, text: str) -> None:
        """Something worth knowing."""

    def warn(self, text: str) -> None:
        """Something worth acting on."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def make_console(json: bool = False) -> Console:
    """Bars where stderr is a terminal that can draw them, else plain lines; with ``json`` always plain lines."""
    if os.environ.get("RANK", "0") != "0":  # one process of a torchrun group speaks for all
        return Quiet()
    can_draw = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return Bars() if can_draw and not json else Lines()


class Quiet:
    """Says nothing but warnings."""

    def stage(self, name: str, *, reused: bool = False, seconds: float | None = None) -> None:
        """Nothing."""

    def tick(self, done: int, total: int, note: str) -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Something worth acting on."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to leave."""


class Lines:
    """One line for each begun, finished or reused stage, and within one a line every tenth of the work.

    Lines of progress are at least ``gap_s`` apart, and a stage that is slower than a tenth a minute still speaks once a
    minute.
    """

    def __init__(self, gap_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds."""
        self._gap_s = gap_s
        self._clock = clock
        self._stage = ""
        self._tenth = 0
        self._spoke = clock()

    def stage(self, name: str, *, reused: bool = False, seconds: float | None = None) -> None:
        """A stage begins, ends or is reused."""
        self._stage, self._tenth, self._spoke = name, 0, self._clock()
        self.line(_stage_line(name, reused, seconds))

    def tick(self, done: int, total: int, note: str) -> None:
        """The stage's progress."""
        if done >= total:
            return  # the stage says so itself
        tenth, since = 10 * done // total, self._clock() - self._spoke
        if (tenth > self._tenth and since >= self._gap_s) or since >= 60:
            self._tenth, self._spoke = tenth, self._clock()
            self.line(f"{self._stage}: {100 * done // total} % {note}".rstrip())

    def line(self, text: str) -> None:
        """Something worth knowing."""
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something worth acting on."""
        self.line(f"warning: {text}")

    def close(self) -> None:
        """Nothing to leave."""


class Bars:
    """One bar, for the stage that runs; finished stages stay above it as lines."""

    def __init__(self) -> None:
        """Draws on stderr."""
        from rich.console import Console as Terminal

        self._terminal = Terminal(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def stage(self, name: str, *, reused: bool = False, seconds: float | None = None) -> None:
        """A stage begins, ends or is reused."""
        self.close()
        if reused or seconds is not None:
            self._print(_stage_line(name, reused, seconds), "dim" if reused else "green")
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._terminal,
            transient=True,
        )
        self._task = self._progress.add_task(name, total=None, note="")
        self._progress.start()

    def tick(self, done: int, total: int, note: str) -> None:
        """The stage's progress."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=max(total, 1), note=note)

    def line(self, text: str) -> None:
        """Something worth knowing."""
        self._print(text, "")

    def warn(self, text: str) -> None:
        """Something worth acting on."""
        self._print(f"warning: {text}", "yellow")

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def _print(self, text: str, style: str) -> None:
        # Paths hold brackets: no markup. Long lines wrap where the terminal wants, so that they can be copied.
        self._terminal.print(text, style=style, markup=False, soft_wrap=True)


def _stage_line(name: str, reused: bool, seconds: float | None) -> str:
    if reused:
        return f"{name}: reused"
    return f"{name} …" if seconds is None else f"{name}: done in {seconds:.1f} s"
