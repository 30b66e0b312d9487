"""What a watch has seen and where it goes on after a cut; makes no call."""

from __future__ import annotations

from collections.abc import Iterable

from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1.model_pb2 import TASK_UNSPECIFIED

from gristmill_client import _history_messages as history
from gristmill_client import _registry_messages as messages
from gristmill_client._messages import MODELS, model_id
from gristmill_client._steps import Patience
from gristmill_client.errors import GristmillError
from gristmill_client.resources import Task, WatchEvent

# About five minutes without a message before a watch that once worked gives up.
_PATIENCE = 60


class WatchState:
    """A snapshot is held back until it is complete: one that was cut half-way is asked for anew,
    and what it told already may be gone by then.
    """

    def __init__(self, after_revision: int | None, names: Iterable[str], task: Task | None) -> None:
        self._revision = after_revision
        self._names = [MODELS + model_id(name) for name in names]
        self._task = messages.TASKS[task] if task else TASK_UNSPECIFIED
        self._snapshot: list[WatchEvent] = []
        self._patience = Patience(_PATIENCE)
        self._connected = False

    def request(self) -> pb.WatchRequest:
        """The request to begin or to go on with."""
        self._snapshot.clear()
        return pb.WatchRequest(after_revision=self._revision, names=self._names, task=self._task)

    def feed(self, message: pb.WatchResponse) -> list[WatchEvent]:
        """The events that are now certain."""
        self._connected = True
        self._patience.progressed()
        event = history.watch_event(message)
        if event.kind == "snapshot":
            self._snapshot.append(event)
            return []
        if event.kind != "bookmark" and event.revision <= (self._revision or 0):
            return []
        self._revision = event.revision
        if not event.snapshot_complete:
            return [event]
        events, self._snapshot = [*self._snapshot, event], []
        return events

    def pause(self, error: GristmillError) -> float:
        """Seconds until the next try. Raises the error where that is no use, as at the first."""
        if not self._connected:
            raise error
        return self._patience.pause(error)
