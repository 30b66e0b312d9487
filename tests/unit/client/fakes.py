"""Classifier, generator and health as the client sees them; servers in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from gristmill.classifier.v1 import classifier_service_pb2 as classifier_pb
from gristmill.classifier.v1 import result_pb2
from gristmill.generator.v1 import generator_service_pb2 as generator_pb
from gristmill.generator.v1 import result_pb2 as generated

# What should take milliseconds fails after this instead of hanging.
SOON_S = 20.0

Register = Callable[[grpc.Server], None]
Behaviour = Callable[[Any], None]


@contextmanager
def serving(*register: Register) -> Iterator[str]:
    """The address of a server that lives as long as the block."""
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    for add in register:
        add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(SOON_S)


def add_service(server: grpc.Server, file: FileDescriptor, servicer: object) -> None:
    """Those methods of the file's service that the servicer has; the others are unimplemented."""
    (service,) = file.services_by_name.values()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        if hasattr(servicer, method.name):
            kind = "stream" if method.client_streaming else "unary"
            answers = "stream" if method.server_streaming else "unary"
            make = getattr(grpc, f"{kind}_{answers}_rpc_method_handler")
            handlers[method.name] = make(
                getattr(servicer, method.name),
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
    generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))


def error_info(reason: str, domain: str = "gristmill", **metadata: str) -> Message:
    info: Message = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
    return info


def rich_status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def refuse(context: Any, code: grpc.StatusCode, message: str, *details: Message) -> NoReturn:
    """Ends the call as a Gristmill server does."""
    status = rich_status(code, message, *details)
    context.set_trailing_metadata(
        (
            ("x-request-id", "request-1"),
            ("grpc-status-details-bin", status.SerializeToString()),
        )
    )
    context.abort(code, message)
    raise AssertionError("abort raises")


def cut(context: Any) -> NoReturn:
    """Ends the call as a connection that breaks does: no word from a Gristmill server."""
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    raise AssertionError("abort raises")


class FakeClassifier:
    """Finds every text "positive"; the text "bad" fails alone. `behaviour` may end a call first."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.time_left: list[float] = []
        self.cancelled = threading.Event()
        self.hold = False

    def register(self, server: grpc.Server) -> None:
        add_service(server, classifier_pb.DESCRIPTOR, self)

    def _begin(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_left.append(context.time_remaining())
        if self.behaviour is not None:
            self.behaviour(context)

    def Classify(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC names
        self._begin(request, context)
        return classifier_pb.ClassifyResponse(
            results=[classified(item) for item in request.items], model="sentiment", version=3
        )

    def ClassifyStream(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        context.add_callback(self.cancelled.set)
        self._begin(request, context)
        for index in reversed(range(len(request.items))):
            yield classifier_pb.ClassifyStreamResponse(
                index=index, result=classified(request.items[index]), model="sentiment", version=3
            )
            if self.hold:
                self.cancelled.wait(SOON_S)


def classified(item: Any) -> result_pb2.ItemResult:
    if item.text.text == "bad" or item.image.data == b"bad":
        status = rich_status(
            grpc.StatusCode.INVALID_ARGUMENT,
            "the item makes no sense",
            error_info("INVALID_FIELD"),
            error_details_pb2.BadRequest(
                field_violations=[{"field": "items[0].text", "description": "is bad"}]
            ),
        )
        return result_pb2.ItemResult(error=status)
    return result_pb2.ItemResult(
        classification=result_pb2.Classification(
            labels=[
                result_pb2.LabelScore(label="positive", index=1, score=0.75),
                result_pb2.LabelScore(label="negative", index=0, score=0.25),
            ],
            probabilities=[0.25, 0.75],
            tokens=4,
        ),
        timings=result_pb2.Timings(queue_us=10, compute_us=200, batch_size=8),
    )


class FakeGenerator:
    """Says "Hello, world". `hold`: after the first delta wait for the client to give up."""

    DELTAS = ("Hello", ", ", "world")

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour
        self.fail_after_first: Behaviour | None = None
        self.requests: list[Any] = []
        self.time_left: list[float] = []
        self.cancelled = threading.Event()
        self.hold = False

    def register(self, server: grpc.Server) -> None:
        add_service(server, generator_pb.DESCRIPTOR, self)

    def _begin(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.time_left.append(context.time_remaining())
        if self.behaviour is not None:
            self.behaviour(context)

    def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._begin(request, context)
        choice = generated.Choice(
            text="".join(self.DELTAS),
            token_ids=[1, 2, 3],
            finish_reason=generated.FINISH_REASON_STOP,
            stop_match="!",
        )
        generation = generated.Generation(
            choices=[choice],
            usage=generated.Usage(prompt_tokens=5, completion_tokens=3),
            timings=generated.Timings(total_us=900),
        )
        result = generated.PromptResult(generation=generation)
        if request.prompts[0].text.text == "bad":
            status = rich_status(
                grpc.StatusCode.INVALID_ARGUMENT, "too long", error_info("INVALID_FIELD")
            )
            result = generated.PromptResult(error=status)
        return generator_pb.GenerateResponse(results=[result], model="smollm2", version=1)

    def GenerateStream(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        context.add_callback(self.cancelled.set)
        self._begin(request, context)
        started = generator_pb.Started(model="smollm2", version=1, prompt_tokens=5)
        yield generator_pb.GenerateStreamResponse(started=started)
        for token, text in enumerate(self.DELTAS):
            delta = generator_pb.Delta(text=text, token_ids=[token])
            yield generator_pb.GenerateStreamResponse(delta=delta)
            if self.hold:
                self.cancelled.wait(SOON_S)
            if self.fail_after_first is not None:
                self.fail_after_first(context)
        finished = generator_pb.Finished(
            choices=[generated.Choice(finish_reason=generated.FINISH_REASON_LENGTH)],
            usage=generated.Usage(prompt_tokens=5, completion_tokens=3),
            timings=generated.Timings(total_us=900),
        )
        yield generator_pb.GenerateStreamResponse(finished=finished)


class FakeHealth:
    """grpc.health.v1, as far as its two calls go: one answer, then for Watch silence."""

    def __init__(self, status: int) -> None:
        self._answer = bytes((0x08, status))
        self.closing = threading.Event()
        self.watched = threading.Event()

    def register(self, server: grpc.Server) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.unary_unary_rpc_method_handler(lambda request, context: self._answer),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        service = grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)
        server.add_generic_rpc_handlers((service,))

    def _watch(self, request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(self.closing.set)
        yield self._answer
        self.watched.set()
        self.closing.wait(SOON_S)
