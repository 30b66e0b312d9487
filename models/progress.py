"""What the user sees while files are fetched and models assembled; knows neither."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from models.sources import OnProgress


class Reporter(Protocol):
    """`fetching` counts bytes, `counting` counts things, `working` only says that it is at it."""

    def fetching(self, name: str, origin: str) -> AbstractContextManager[OnProgress]: ...

    def counting(self, what: str) -> AbstractContextManager[OnProgress]: ...

    def working(self, what: str) -> AbstractContextManager[None]: ...

    def say(self, text: str) -> None: ...


class ConsoleReporter:
    """Bars on a terminal; elsewhere (CI logs) one line per step."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def fetching(self, name: str, origin: str) -> AbstractContextManager[OnProgress]:
        if not self._console.is_terminal:
            self.say(f"{name} from {origin}")
        return self._bar(name, DownloadColumn(), TransferSpeedColumn())

    def counting(self, what: str) -> AbstractContextManager[OnProgress]:
        if not self._console.is_terminal:
            self.say(what)
        return self._bar(what, MofNCompleteColumn(), TimeRemainingColumn())

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        if not self._console.is_terminal:
            self.say(what)
            yield
            return
        with self._console.status(what):
            yield

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def _bar(self, what: str, *figures: ProgressColumn) -> Iterator[OnProgress]:
        if not self._console.is_terminal:
            yield lambda done, total: None
            return
        with Progress(
            TextColumn(what, markup=False), BarColumn(), *figures, console=self._console
        ) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
