"""Progress of a fit where there is no terminal: a line for each finished step with its time."""

from __future__ import annotations

import io
import re

from rich.console import Console
from rich.progress import Progress

from training.progress import StepLines, progress_on, steps_of


def test_without_a_terminal_each_finished_step_is_a_line_with_its_time() -> None:
    file = io.StringIO()
    with progress_on(Console(file=file)) as progress:
        begin = steps_of(progress)
        audited, fitted = begin("audit", 1), begin("models [to serve]", 2)
        assert file.getvalue() == ""
        audited()
        fitted()
        assert re.fullmatch(r"audit +\d+\.\d s\n", file.getvalue())
        fitted()
        assert re.fullmatch(r"models \[to serve\] +\d+\.\d s", file.getvalue().splitlines()[1])
    assert len(file.getvalue().splitlines()) == 2


def test_a_terminal_gets_bars() -> None:
    assert isinstance(progress_on(Console(file=io.StringIO(), force_terminal=True)), Progress)
    assert isinstance(progress_on(Console(file=io.StringIO())), StepLines)
