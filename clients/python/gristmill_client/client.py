"""The sync client: every call of the three services that a user makes; builds no message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self, Unpack

from gristmill.classifier.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
    ClassifyStreamResponse,
)
from gristmill.classifier.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from gristmill.generator.v1.generator_service_pb2_grpc import GeneratorServiceStub

from gristmill_client import _classify_messages as classify_messages
from gristmill_client import _generate_messages as generate_messages
from gristmill_client import _inference_flows as flows
from gristmill_client._backlog import Backlog
from gristmill_client._bidi_streams import ClassifyBidiStream, open_stream
from gristmill_client._config import GENERATE_TIMEOUT_S, TIMEOUT_S, Service, load
from gristmill_client._conversation import Conversation
from gristmill_client._health import health
from gristmill_client._many import classify_many
from gristmill_client._session import Session
from gristmill_client._streams import Stream, TextStream
from gristmill_client._turns import Defaults
from gristmill_client.completion import (
    Completion,
    ConversationOptions,
    GenerateOptions,
    Message,
)
from gristmill_client.models import Models
from gristmill_client.prediction import ClassifyOptions, Item, Items, Prediction


class Client:
    """Classifies, generates and manages models, blocking. Safe to share between threads.

    Addresses are "host:port", "dns:///name:port" for a name with several machines behind it, or
    several IP addresses "10.0.0.1:50052,10.0.0.2:50052"; with several, calls go round robin over
    those that are healthy. Arguments left out come from GRISTMILL_CLASSIFIER, GRISTMILL_GENERATOR,
    GRISTMILL_REGISTRY, GRISTMILL_TOKEN, GRISTMILL_CA_CERTIFICATE, GRISTMILL_TLS and
    GRISTMILL_SERVER_NAME, else addresses are localhost with the default ports and there is neither
    token nor TLS. `timeout` and `generate_timeout` are the deadlines in seconds of calls that are
    given none. `ca_certificate` (a PEM file) turns TLS on for all services; `tls=True` does so with
    the system's certificates; `server_name` is the name to expect in theirs.

    No connection is opened before the first call that needs it. Calls raise GristmillError, or
    TypeError and ValueError for arguments that no server has to judge. Calls without side effects
    are repeated on UNAVAILABLE; a generation that has begun never is.
    """

    def __init__(
        self,
        *,
        classifier: str | None = None,
        generator: str | None = None,
        registry: str | None = None,
        token: str | None = None,
        timeout: float = TIMEOUT_S,
        generate_timeout: float = GENERATE_TIMEOUT_S,
        ca_certificate: str | Path | None = None,
        tls: bool | None = None,
        server_name: str | None = None,
    ) -> None:
        config = load(
            classifier=classifier,
            generator=generator,
            registry=registry,
            token=token,
            timeout=timeout,
            generate_timeout=generate_timeout,
            ca_certificate=ca_certificate,
            tls=tls,
            server_name=server_name,
        )
        self._session = Session(config)
        self.models = Models(self._session)
        """The registry."""

    def classify(
        self,
        items: Items,
        model: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> list[Prediction]:
        """Classifies up to 1,024 items in one call; one Prediction for each, in their order.

        An item is a str, a pair (str, str), a sequence of numbers, bytes (an encoded image), a
        mapping of input names to arrays (of numpy and alike), a Tensor or an Item message. One item
        that is not in a list still gives a list, of one. `model` may be left out where the server
        serves only one. `timeout` is in seconds; ClassifyOptions has the other options. An item
        that failed alone carries its `error`: only what concerns the whole call raises.
        RPC gristmill.classifier.v1.ClassifierService/Classify.
        """
        request = classify_messages.request(ClassifyRequest, items, model, options)
        return self._session.run(flows.classify(request, timeout))

    def classify_stream(
        self,
        items: Items,
        model: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Stream[ClassifyStreamResponse, tuple[int, Prediction]]:
        """Classifies up to 65,536 items; (index of the item, Prediction) as soon as each is done.

        Iterate over the result, at best within `with`: leaving that, or `close()`, stops the work.
        Arguments are those of `classify`; `timeout` is for the whole stream.
        RPC gristmill.classifier.v1.ClassifierService/ClassifyStream.
        """
        request = classify_messages.request(ClassifyStreamRequest, items, model, options)
        call = self._session.stub("classifier", ClassifierServiceStub).ClassifyStream(
            request,
            timeout=self._session.config.timeout_s if timeout is None else timeout,
            metadata=self._session.metadata,
        )
        read = classify_messages.indexed_prediction
        return Stream(self._session, "classifier", call, read)

    def classify_bidi(
        self,
        model: str | None = None,
        *,
        timeout: float | None = None,
        stream_timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> ClassifyBidiStream:
        """Opens a stream of items that are sent when one likes; (id, Prediction) as each is done.

        `send` items, iterate, `close_send`; at best within `with`: leaving that, or `close()`,
        stops the work. `model`, `timeout` (seconds that items have from their arrival; the
        client's own if left out) and the options hold for what is sent without others. The stream
        lasts as long as one likes, or `stream_timeout` seconds. An item that failed alone, or that
        was refused, carries its `error`.
        RPC gristmill.classifier.v1.ClassifierService/ClassifyBidi.
        """
        return open_stream(self._session, model, timeout, stream_timeout, options)

    def classify_many(
        self,
        items: Iterable[Item],
        model: str | None = None,
        *,
        batch: int = 32,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Iterator[tuple[int, Prediction]]:
        """Classifies any number of items; (index of the item, Prediction) as each is done.

        Takes items as results make room, `batch` (1 to 1,024) at a time and about 256 ahead: for
        files and data sets, not for a source that makes one wait. Where a server drains or is lost,
        what has no result is sent again, four times in all. `timeout` is that of each item.
        RPC gristmill.classifier.v1.ClassifierService/ClassifyBidi.
        """

        def begin() -> ClassifyBidiStream:
            return self.classify_bidi(model, timeout=timeout, **options)

        return classify_many(begin, items, Backlog(items, batch))

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Continues one prompt and answers when all is done.

        Either `prompt`, raw: text or token ids that the model sees as they are, without a chat
        template. Or `messages`, a chat for the model's own template:
        `[{"role": "user", "content": "Hello"}]`. Chat models want the second; see also `chat`.
        GenerateOptions has the other options. `timeout` is in seconds, `generate_timeout` of the
        client if left out. Never repeated by the client once it has reached a server.
        RPC gristmill.generator.v1.GeneratorService/Generate.
        """
        request = generate_messages.generate_request(prompt, messages, model, options)
        return self._session.run(flows.generate(request, self._generate_timeout(timeout)))

    def chat(
        self,
        text: str,
        *,
        system: str | None = None,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Answers one message of a user: `generate` with `messages` made from `text`.

        `system` comes before it as the operator's message.
        RPC gristmill.generator.v1.GeneratorService/Generate.
        """
        messages = generate_messages.user_messages(text, system)
        return self.generate(messages=messages, model=model, timeout=timeout, **options)

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextStream:
        """Continues one prompt and gives the text as it comes: iterate over the deltas.

        Deltas are never empty and join to exactly `.text`; after the last one `.finish_reason`,
        `.usage` and `.timings` are known. Leaving its `with`, or `close()`, stops the work on the
        server. A failure after the first delta raises from the iteration; `.text` keeps what came.
        Arguments are those of `generate`, of which `n` must be 1.
        RPC gristmill.generator.v1.GeneratorService/GenerateStream.
        """
        request = generate_messages.stream_request(prompt, messages, model, options)
        call = self._session.stub("generator", GeneratorServiceStub).GenerateStream(
            request, timeout=self._generate_timeout(timeout), metadata=self._session.metadata
        )
        return TextStream(self._session, call)

    def converse(
        self,
        model: str | None = None,
        *,
        system: str | None = None,
        history: Sequence[Message] = (),
        timeout: float | None = None,
        **options: Unpack[ConversationOptions],
    ) -> Conversation:
        """Opens a conversation, whose history the server keeps as long as it lasts.

        `say` a turn and iterate over its answer; at best within `with`: leaving that, or `close()`,
        stops the work. A turn while one is being answered ends that answer. `system` and `history`
        (oldest first, at most 1,024 messages in all) are what was said before. `timeout` (seconds,
        1 ms to 1 hour, that an answer has from its turn's arrival; `generate_timeout` of the client
        if left out) and the options hold for turns that say nothing else. A turn that failed alone
        raises from its answer and leaves no trace; what ends the conversation, as a server that
        drains or waits too long for a turn, raises from all that are under way. Never resumed.
        RPC gristmill.generator.v1.GeneratorService/GenerateBidi.
        """
        opening = generate_messages.open_request(system, history, model, options)
        defaults = Defaults(self._generate_timeout(timeout), options)
        return Conversation(self._session, opening, defaults)

    def health(self, service: Service, *, timeout: float | None = None) -> str:
        """How a service as a whole is: "SERVING", "NOT_SERVING" or "UNKNOWN".

        RPC grpc.health.v1.Health/Check.
        """
        return self._session.run(health(service, timeout))

    def close(self) -> None:
        """Closes the connections; calls under way end with Cancelled."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate_timeout(self, timeout: float | None) -> float:
        return self._session.config.generate_timeout_s if timeout is None else timeout
