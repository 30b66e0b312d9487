"""How the command prints: JSON or columns on stdout, progress on stderr; knows no command."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from gristmill_client import resources
from gristmill_client._tally import OnProgress
from gristmill_client.errors import GristmillError
from gristmill_client.operations import OnOperation, OperationState


def print_json(value: object, *, in_one_line: bool = False) -> None:
    indent = None if in_one_line else 2
    typer.echo(json.dumps(jsonable(value), indent=indent, ensure_ascii=False))


def jsonable(value: object) -> object:
    """Dataclasses by their fields, errors by what a program can use of them."""
    if dataclasses.is_dataclass(value):
        return {
            f.name: jsonable(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name[0] != "_"
        }
    if isinstance(value, GristmillError):
        return {name: jsonable(part) for name, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(key): jsonable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns under headings; never cut short where nobody looks at a terminal."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    with console.capture() as capture:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def size(count: float) -> str:
    """Bytes for people: "23.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def moment(when: datetime | None) -> str:
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S") if when else ""


@contextmanager
def transfer_bar(verb: str) -> Iterator[tuple[OnProgress | None, OnOperation | None]]:
    """A bar on stderr if that is a terminal, else nothing: what hears of bytes, and of a check."""
    if not sys.stderr.isatty():
        yield None, None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=None)

        def on_progress(progress: resources.Progress) -> None:
            bar.update(
                task,
                description=f"{verb} {progress.path}",
                total=progress.all_size_bytes,
                completed=progress.all_done_bytes,
            )

        def on_check(state: OperationState[Any]) -> None:
            bar.update(task, description=f"check {state.progress:.0%} {state.message}".rstrip())

        yield on_progress, on_check


@contextmanager
def work_bar(verb: str) -> Iterator[OnOperation | None]:
    """A bar for long work on stderr if that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=1.0)

        def on_progress(state: OperationState[Any]) -> None:
            description = f"{verb} {state.message}".rstrip()
            bar.update(task, description=description, completed=state.progress)

        yield on_progress
