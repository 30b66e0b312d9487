"""A version in a process, who uses it, and what a caller asks for. Knows no registry."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Literal, Protocol, TypeVar

from services.inference.manifest import Manifest
from services.runtime.catalog import VersionEntry

State = Literal["loading", "ready", "draining", "failed", "unloaded"]
Key = tuple[str, int]


class Runner(Protocol):
    """What runs a version: a batcher with its backend, or an engine."""

    async def close(self) -> None:
        """Finish what is in hand and give everything up."""
        ...


RunnerT = TypeVar("RunnerT", bound=Runner)


@dataclass(eq=False, slots=True)
class Loaded(Generic[RunnerT]):
    """A version in this process."""

    entry: VersionEntry
    state: State = "loading"
    reason: str = ""
    manifest: Manifest | None = None
    runner: RunnerT | None = None
    ready_time: datetime | None = None
    users: int = 0
    by_hand: bool = False
    """Loaded by an explicit call: stays without an alias."""
    starting: bool = False
    """Being fetched and started, which cannot be stopped; it may have been unloaded meanwhile."""
    no_memory: bool = False
    """Failed for want of memory: tried again when some is given back."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when loading has succeeded or failed."""

    @property
    def key(self) -> Key:
        """Model and version."""
        return self.entry.model, self.entry.version


class Use(Generic[RunnerT]):
    """A version held for as long as a `with` lasts."""

    __slots__ = ("loaded", "shadow")

    def __init__(self, loaded: Loaded[RunnerT], shadow: Loaded[RunnerT] | None = None) -> None:
        self.loaded = loaded
        self.shadow = shadow
        """The version that only watches this call, where there is one."""

    def __enter__(self) -> Loaded[RunnerT]:
        self.loaded.users += 1
        return self.loaded

    def __exit__(self, *_: object) -> None:
        self.loaded.users -= 1
        if not self.loaded.users:
            self.loaded.idle.set()


@dataclass(slots=True)
class Wanted:
    """What a caller asked for: a model, and a version or an alias or neither."""

    model: str = ""
    version: int = 0
    alias: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of the call: a traffic policy may choose by one of its keys."""
