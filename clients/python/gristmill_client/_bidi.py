"""What is under way on a bidi stream of the classifier: ids, their bound, what is still to be sent.

Waits for nothing and makes no call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import options_pb2
from gristmill.registry.v1 import model_pb2

from gristmill_client import _classify_messages as messages
from gristmill_client._messages import checked_id, checked_timeout, model_ref, reject_unknown
from gristmill_client.errors import DeadlineExceeded, Unavailable
from gristmill_client.prediction import ClassifyOptions, Item

# The server's own window, what it reads before it has sent results: within it neither end ever
# waits for a caller that has not begun to read.
WINDOW = 1024
# Of messages that gRPC has not pulled yet.
QUEUE_BYTES = 64 * 1024 * 1024
# The contract's bound, a breach of which would end the stream for everything on it.
_MAX_ITEMS = 1024


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for a message that says nothing else."""

    model: str | None
    timeout_s: float
    options: ClassifyOptions

    def __post_init__(self) -> None:
        """What is wrong is told before anything is sent. Raises TypeError, ValueError."""
        self._fields(None, None, {})

    def message(
        self,
        items: Iterable[tuple[str | None, Item]],
        model: str | None,
        timeout: float | None,
        options: ClassifyOptions,
    ) -> tuple[pb.ClassifyBidiRequest, float]:
        """The message, with "" for ids that were not given, and its timeout in seconds.

        Another model or version comes without the version or alias of the stream's own.
        """
        fields, seconds = self._fields(model, timeout, options)
        fields.items.extend(
            pb.BidiItem(id=checked_id(name), item=messages.item_message(item))
            for name, item in items
        )
        if not 1 <= len(fields.items) <= _MAX_ITEMS:
            raise ValueError(f"a message has 1 to {_MAX_ITEMS:,} items, not {len(fields.items):,}")
        return fields, seconds

    def _fields(
        self, model: str | None, timeout: float | None, options: ClassifyOptions
    ) -> tuple[pb.ClassifyBidiRequest, float]:
        """A message without items, and its timeout."""
        inherited = self.options.copy()
        if model is not None or options.keys() & {"version", "alias"}:
            inherited.pop("version", None)
            inherited.pop("alias", None)
        merged: ClassifyOptions = {**inherited, **options}
        reject_unknown(merged, ClassifyOptions.__annotations__)
        wanted = model_ref(model or self.model, merged.get("version"), merged.get("alias"))
        seconds = checked_timeout(timeout, self.timeout_s, "the items of a message have")
        fields = pb.ClassifyBidiRequest(
            model=wanted or model_pb2.ModelRef(),
            options=messages.options_message(merged),
            priority=merged.get("priority", 0),
        )
        fields.timeout.FromNanoseconds(round(seconds * 1e9))
        return fields, seconds


def identified(items: Mapping[str, Item] | Iterable[Item]) -> list[tuple[str | None, Item]]:
    """The items with their ids; None where there are none."""
    if isinstance(items, Mapping):
        return list(items.items())
    if messages.is_one(items):
        raise TypeError(f"several items, or a mapping of ids to items, not {type(items).__name__}")
    return [(None, item) for item in items]


class Outbox:
    """Messages on their way out, and the ids that have no result yet, in the order sent.

    Its owner takes a lock around each call, or runs on one loop.
    """

    def __init__(self) -> None:
        self.pending: dict[str, None] = {}
        self.half_closed = False
        self.ended = False
        self._queue: deque[tuple[pb.ClassifyBidiRequest, int]] = deque()
        self._queued_bytes = 0
        self._model = model_pb2.ModelRef()
        self._options = options_pb2.ClassifyOptions()
        self._number = 0

    @property
    def settled(self) -> bool:
        """Whether `put` knows without waiting what becomes of a message."""
        return self.ended or self.half_closed or self.has_room

    @property
    def has_room(self) -> bool:
        """A message of any size goes in while this is true."""
        return len(self.pending) < WINDOW and self._queued_bytes < QUEUE_BYTES

    @property
    def ready(self) -> bool:
        """Whether `take` knows without waiting what comes next."""
        return bool(self._queue) or self.ended or self.half_closed

    def put(self, request: pb.ClassifyBidiRequest) -> list[str] | None:
        """The ids of its items; None: the call has ended. Raises RuntimeError, ValueError."""
        if self.half_closed:
            raise RuntimeError("close_send was called: nothing more can be sent")
        if self.ended:
            return None
        for item in request.items:
            if item.id in self.pending:
                raise ValueError(f"the id {item.id!r} is under way already")
        given = {item.id for item in request.items}
        for item in request.items:
            item.id = item.id or self._new_id(given)
        ids = [item.id for item in request.items]
        size = request.ByteSize()
        self.pending.update(dict.fromkeys(ids))
        self._queue.append((request, size))
        self._queued_bytes += size
        return ids

    def take(self) -> pb.ClassifyBidiRequest | None:
        """The next message to send, model and options only where they change; None: no more."""
        if self.ended or not self._queue:
            return None
        request, size = self._queue.popleft()
        self._queued_bytes -= size
        if request.model == self._model:
            request.ClearField("model")
        else:
            self._model.CopyFrom(request.model)
        if request.options == self._options:
            request.ClearField("options")
        else:
            self._options.CopyFrom(request.options)
        return request

    def answered(self, id: str) -> None:  # noqa: A002  # the contract's name
        self.pending.pop(id, None)

    def _new_id(self, given: set[str]) -> str:
        while True:
            self._number += 1
            found = str(self._number)
            if found not in self.pending and found not in given:
                return found


def no_room(waited_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"nothing was sent: {WINDOW:,} items are under way, or too many bytes wait to be sent, and "
        f"no result was taken for {waited_s:g} s; iterate while another thread or task sends"
    )


def unanswered() -> Unavailable:
    return Unavailable("the classifier ended the stream before everything was answered")
