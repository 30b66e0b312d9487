"""What waits in a batcher: messages of items, and where every item ever submitted is."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from services.inference.items import Encoded
from services.inference.outcomes import OnItem, Outcome
from services.inference.scheduler import Entry
from services.inference.workers import Work


@dataclass(slots=True, eq=False)
class Message:
    """The items of one permit: they are accepted together and answered one by one."""

    future: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome | None]
    on_item: OnItem | None
    left: int
    entries: Sequence["Queued"] = ()


@dataclass(slots=True, eq=False)
class Queued(Entry):
    """An entry with its item, and where its outcome goes."""

    message: Message = None  # type: ignore[assignment]  # fields of the parent have defaults
    index: int = 0
    item: Encoded = None  # type: ignore[assignment]
    arrived: float = 0.0
    done: bool = False


@dataclass(slots=True)
class Counts:
    """Where every item ever submitted is: `submitted` is the sum of all the others."""

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    pending: int = 0


def queued(work: Work) -> Sequence[Queued]:
    """The entries of a batch as what they were pushed as."""
    return work.batch.entries  # type: ignore[return-value]
