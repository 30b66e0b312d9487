"""The async client: the twin of client.py, with the same names; builds no message."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
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
from gristmill_client._aio_bidi_streams import AsyncClassifyBidiStream, open_stream
from gristmill_client._aio_conversation import AsyncConversation
from gristmill_client._aio_many import classify_many
from gristmill_client._aio_session import AsyncSession
from gristmill_client._aio_streams import AsyncStream, AsyncTextStream
from gristmill_client._backlog import Backlog
from gristmill_client._config import GENERATE_TIMEOUT_S, TIMEOUT_S, Service, load
from gristmill_client._health import health
from gristmill_client._turns import Defaults
from gristmill_client.aio_models import AsyncModels
from gristmill_client.completion import (
    Completion,
    ConversationOptions,
    GenerateOptions,
    Message,
)
from gristmill_client.prediction import ClassifyOptions, Item, Items, Prediction


class AsyncClient:
    """Classifies, generates and manages models, awaiting: the twin of Client.

    Arguments, results and errors are Client's. Its connections belong to the event loop of the
    first call: make one client for each loop.
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
        self._session = AsyncSession(config)
        self.models = AsyncModels(self._session)
        """The registry."""

    async def classify(
        self,
        items: Items,
        model: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> list[Prediction]:
        """As Client.classify. RPC gristmill.classifier.v1.ClassifierService/Classify."""
        request = classify_messages.request(ClassifyRequest, items, model, options)
        return await self._session.run(flows.classify(request, timeout))

    def classify_stream(
        self,
        items: Items,
        model: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> AsyncStream[ClassifyStreamResponse, tuple[int, Prediction]]:
        """As Client.classify_stream, for `async for` and `async with`; needs no await itself.

        RPC gristmill.classifier.v1.ClassifierService/ClassifyStream.
        """
        request = classify_messages.request(ClassifyStreamRequest, items, model, options)
        call = self._session.stub("classifier", ClassifierServiceStub).ClassifyStream(
            request,
            timeout=self._session.config.timeout_s if timeout is None else timeout,
            metadata=self._session.metadata,
        )
        read = classify_messages.indexed_prediction
        return AsyncStream(self._session, "classifier", call, read)

    def classify_bidi(
        self,
        model: str | None = None,
        *,
        timeout: float | None = None,
        stream_timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> AsyncClassifyBidiStream:
        """As Client.classify_bidi, for `async for` and `async with`; needs no await itself.

        RPC gristmill.classifier.v1.ClassifierService/ClassifyBidi.
        """
        return open_stream(self._session, model, timeout, stream_timeout, options)

    def classify_many(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        model: str | None = None,
        *,
        batch: int = 32,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> AsyncIterator[tuple[int, Prediction]]:
        """As Client.classify_many, for `async for`; takes items of an async iterable too.

        RPC gristmill.classifier.v1.ClassifierService/ClassifyBidi.
        """

        def begin() -> AsyncClassifyBidiStream:
            return self.classify_bidi(model, timeout=timeout, **options)

        return classify_many(begin, items, Backlog(items, batch))

    async def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """As Client.generate. RPC gristmill.generator.v1.GeneratorService/Generate."""
        request = generate_messages.generate_request(prompt, messages, model, options)
        return await self._session.run(flows.generate(request, self._generate_timeout(timeout)))

    async def chat(
        self,
        text: str,
        *,
        system: str | None = None,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """As Client.chat. RPC gristmill.generator.v1.GeneratorService/Generate."""
        messages = generate_messages.user_messages(text, system)
        return await self.generate(messages=messages, model=model, timeout=timeout, **options)

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTextStream:
        """As Client.stream, for `async for` and `async with`; needs no await itself.

        RPC gristmill.generator.v1.GeneratorService/GenerateStream.
        """
        request = generate_messages.stream_request(prompt, messages, model, options)
        call = self._session.stub("generator", GeneratorServiceStub).GenerateStream(
            request, timeout=self._generate_timeout(timeout), metadata=self._session.metadata
        )
        return AsyncTextStream(self._session, call)

    def converse(
        self,
        model: str | None = None,
        *,
        system: str | None = None,
        history: Sequence[Message] = (),
        timeout: float | None = None,
        **options: Unpack[ConversationOptions],
    ) -> AsyncConversation:
        """As Client.converse, for `async with`; needs no await itself.

        RPC gristmill.generator.v1.GeneratorService/GenerateBidi.
        """
        opening = generate_messages.open_request(system, history, model, options)
        defaults = Defaults(self._generate_timeout(timeout), options)
        return AsyncConversation(self._session, opening, defaults)

    async def health(self, service: Service, *, timeout: float | None = None) -> str:
        """As Client.health. RPC grpc.health.v1.Health/Check."""
        return await self._session.run(health(service, timeout))

    async def close(self) -> None:
        """Closes the connections; calls under way end with Cancelled."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _generate_timeout(self, timeout: float | None) -> float:
        return self._session.config.generate_timeout_s if timeout is None else timeout
