"""Progress of a fit: bars on a terminal, elsewhere a line for each finished step with the time that it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

NAME_WIDTH: Final = 28


@dataclass
class _Step:
    name: str
    left: int
    began: float


class StepLines:
    """Prints a line when a step is finished. It has the methods of rich's Progress that a fit calls."""

    def __init__(self, console: Console) -> None:
        self._console: Final = console
        self._steps: Final[list[_Step]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def add_task(self, description: str, *, total: int) -> TaskID:
        """Begin a step of ``total`` parts; returns its number."""
        self._steps.append(_Step(description, total, time.perf_counter()))
        return TaskID(len(self._steps) - 1)

    def advance(self, step: TaskID) -> None:
        """Note that a part of a step is finished."""
        state = self._steps[step]
        state.left -= 1
        if state.left == 0:
            seconds = time.perf_counter() - state.began
            line = f"{state.name:<{NAME_WIDTH}} {seconds:7.1f} s"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def progress_on(console: Console) -> Progress | StepLines:
    """The progress display that fits the console, as a context manager."""
    if not console.is_terminal:
        return StepLines(console)
    return Progress(
        TextColumn(f"{{task.description:<{NAME_WIDTH}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def steps_of(progress: Progress | StepLines) -> Callable[[str, int], Callable[[], None]]:
    """What training calls with a step's name and its number of parts; returns what to call after each part."""

    def begin(name: str, parts: int) -> Callable[[], None]:
        task = progress.add_task(name, total=parts)
        return lambda: progress.advance(task)

    return begin
