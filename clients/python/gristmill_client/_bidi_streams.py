"""The bidi stream of the sync client: sends from any thread, gives results to one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Self, Unpack, cast

import grpc
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1.classifier_service_pb2_grpc import ClassifierServiceStub

from gristmill_client import _classify_messages as messages
from gristmill_client._bidi import Defaults, Outbox, identified, no_room, unanswered
from gristmill_client._session import Session
from gristmill_client._streams import Closing, Stream
from gristmill_client.errors import GristmillError
from gristmill_client.prediction import ClassifyOptions, Item, Prediction


class ClassifyBidiStream(Closing):
    """Items out, (id, Prediction) in as each is done. See Client.classify_bidi.

    Any number of threads may send while one iterates. The iteration ends when `close_send` has been
    called and everything is answered; what ends the stream early raises from it, and from sending.
    `close()`, or leaving its `with`, cancels what is still under way.
    """

    def __init__(self, session: Session, defaults: Defaults, stream_timeout: float | None) -> None:
        self._session = session
        self._defaults = defaults
        self._sending = _Sending()
        self._call = session.stub("classifier", ClassifierServiceStub).ClassifyBidi(
            self._sending, timeout=stream_timeout, metadata=session.metadata
        )
        if not self._call.add_callback(self._sending.end):
            self._sending.end()
        self._answers = Stream(session, "classifier", self._call, messages.identified_predictions)
        self._ready: deque[tuple[str, Prediction]] = deque()
        self._closed = False

    def send(
        self,
        item: Item,
        *,
        id: str | None = None,  # noqa: A002  # the contract's name
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> str:
        """Sends one item and gives its id: `id`, at most 128 characters, or a new number.

        `model`, `timeout` (seconds, 1 ms to 1 hour, that the item has from its arrival) and the
        options are the stream's own where they are left out. While 1,024 items are under way, sent
        and not yet given by the iteration, or 64 MiB wait to be sent, it waits for another thread
        to iterate, but no longer than `timeout`. Raises DeadlineExceeded then, having sent nothing;
        what ended the stream; ValueError for an id that is under way; RuntimeError after
        `close_send` or `close`; TypeError for what is no item.
        """
        return self._send([(id, item)], model, timeout, options)[0]

    def send_many(
        self,
        items: Mapping[str, Item] | Iterable[Item],
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> list[str]:
        """Sends 1 to 1,024 items in one message, by id or with new ids, and gives their ids.

        Otherwise as `send`. A server with too little room for all of them refuses all.
        """
        return self._send(identified(items), model, timeout, options)

    def close_send(self) -> None:
        """Says that nothing more will be sent: the iteration ends when all is answered."""
        self._sending.close()

    @property
    def has_room(self) -> bool:
        """Whether a send would not wait: what one thread that sends and iterates asks first."""
        return self._sending.has_room

    @property
    def pending(self) -> tuple[str, ...]:
        """The ids that have no result yet, in the order sent.

        Once the iteration has raised Unavailable, as of a server that drains, these have not been
        answered and may be sent again, here or elsewhere: classification has no side effects.
        """
        return self._sending.pending

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[str, Prediction]:
        if self._closed:
            raise StopIteration
        while not self._ready:
            try:
                self._ready.extend(next(self._answers))
            except StopIteration:
                if self.pending and not self._closed:
                    raise unanswered() from None
                raise
        id_, prediction = self._ready.popleft()
        self._sending.answered(id_)
        return id_, prediction

    def close(self) -> None:
        """Cancels the call; the server stops working on it. Harmless when it has ended."""
        self._closed = True
        self._sending.end()
        self._answers.close()

    def _send(
        self,
        items: Iterable[tuple[str | None, Item]],
        model: str | None,
        timeout: float | None,
        options: ClassifyOptions,
    ) -> list[str]:
        request, patience_s = self._defaults.message(items, model, timeout, options)
        ids = self._sending.put(request, patience_s)
        if ids is None:
            raise self._end()
        return ids

    def _end(self) -> GristmillError | RuntimeError:
        """Why nothing more can be sent."""
        if self._closed:
            return RuntimeError("the stream is closed")
        if self._call.code() is grpc.StatusCode.OK:
            return unanswered()
        return self._session.error("classifier", cast(grpc.RpcError, self._call))


def open_stream(
    session: Session,
    model: str | None,
    timeout: float | None,
    stream_timeout: float | None,
    options: ClassifyOptions,
) -> ClassifyBidiStream:
    timeout_s = session.config.timeout_s if timeout is None else timeout
    return ClassifyBidiStream(session, Defaults(model, timeout_s, options), stream_timeout)


class _Sending:
    """The outbox between the threads that send and gRPC's own, which pulls; holds no call."""

    def __init__(self) -> None:
        self._outbox = Outbox()
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._ready = threading.Condition(self._lock)

    @property
    def has_room(self) -> bool:
        with self._lock:
            return self._outbox.settled

    @property
    def pending(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._outbox.pending)

    def put(self, request: pb.ClassifyBidiRequest, patience_s: float) -> list[str] | None:
        """The ids, or None where the call has ended. Raises DeadlineExceeded."""
        with self._lock:
            if not self._settled.wait_for(lambda: self._outbox.settled, patience_s):
                raise no_room(patience_s)
            ids = self._outbox.put(request)
            self._ready.notify()
            return ids

    def answered(self, id: str) -> None:  # noqa: A002  # the contract's name
        with self._lock:
            self._outbox.answered(id)
            self._settled.notify_all()

    def close(self) -> None:
        with self._lock:
            self._outbox.half_closed = True
            self._settled.notify_all()
            self._ready.notify()

    def end(self) -> None:
        with self._lock:
            self._outbox.ended = True
            self._settled.notify_all()
            self._ready.notify()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pb.ClassifyBidiRequest:
        with self._lock:
            self._ready.wait_for(lambda: self._outbox.ready)
            request = self._outbox.take()
            self._settled.notify_all()
        if request is None:
            raise StopIteration
        return request
