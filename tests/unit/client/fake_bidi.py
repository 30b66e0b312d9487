"""ClassifyBidi as the client sees it, by scripts of what a server may do; in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.registry.v1 import model_pb2

from tests.unit.client.fakes import SOON_S, add_service, classified, error_info, refuse

Script = Callable[["FakeBidi", Iterator[Any], Any], Iterator[Any]]


def answer(requests: Iterator[Any]) -> Iterator[pb.ClassifyBidiResponse]:
    """All items of each message at once, the last first; the text "bad" fails alone."""
    for request in requests:
        yield answered(request)


def answered(request: Any) -> pb.ClassifyBidiResponse:
    return pb.ClassifyBidiResponse(
        results=[
            pb.BidiResult(id=one.id, result=classified(one.item), model="sentiment", version=3)
            for one in reversed(request.items)
        ]
    )


def held(fake: FakeBidi, requests: Iterator[Any], context: Any) -> Iterator[Any]:
    """Reads one message and then waits for `go` before it answers."""
    for request in requests:
        fake.wait()
        yield answered(request)


def drains_after(count: int) -> Script:
    """Answers so many messages, then ends the stream as a server that shuts down."""

    def script(fake: FakeBidi, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for _, request in zip(range(count), requests, strict=False):
            yield answered(request)
        drain(context)

    return script


def drain(context: Any) -> None:
    refuse(context, grpc.StatusCode.UNAVAILABLE, "shutting down", error_info("DRAINING"))


class FakeBidi:
    """Plays a script for each stream, the last one again and again; without one it answers.

    `effective` is each item as the contract says it is to be classified: its id, and model and
    options that the messages before it may have named. `gone` is set when a caller cancels a
    stream, `ended` when a stream is over, `go` lets a script go on that waits for it.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.streams = 0
        self.messages: list[Any] = []
        self.effective: dict[str, tuple[model_pb2.ModelRef, Any]] = {}
        self.time_left: list[float] = []
        self.half_closed = threading.Event()
        self.gone = threading.Event()
        self.ended = threading.Event()
        self.go = threading.Event()
        self.read = threading.Semaphore(0)
        """Released for each message read."""

    def register(self, server: grpc.Server) -> None:
        add_service(server, pb.DESCRIPTOR, self)

    def ClassifyBidi(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802  # gRPC names
        self.streams += 1
        self.time_left.append(context.time_remaining())
        context.add_callback(self._over)
        script = None
        if self._scripts:
            script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        remembered = self._remember(requests)
        yield from script(self, remembered, context) if script else answer(remembered)
        self.ended.set()

    def wait(self) -> None:
        """For `go`, longer than any test waits for what should come of it."""
        assert self.go.wait(2 * SOON_S)

    def _over(self) -> None:
        if not self.half_closed.is_set():
            self.gone.set()
        self.go.set()

    def _remember(self, requests: Any) -> Iterator[Any]:
        model, options = model_pb2.ModelRef(), pb.ClassifyBidiRequest().options
        for request in requests:
            model = request.model if request.HasField("model") else model
            options = request.options if request.HasField("options") else options
            self.messages.append(request)
            self.effective |= {one.id: (model, options) for one in request.items}
            self.read.release()
            yield request
        self.half_closed.set()
