"""One ClassifyBidi stream: messages of items in, results out as they are done, within a window.

Each message is answered by a task of its own, so that a slow one holds nobody up. What has been
read and not been sent is bounded: beyond that the caller is not read from, and a caller that does
not read its results holds back its own stream only.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Self

import structlog
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import options_pb2
from gristmill.registry.v1 import model_pb2

from services.classifier import converters as to
from services.classifier.answers import Answer, Asked
from services.classifier.traffic import Traffic
from services.runtime.call import Call
from services.runtime.deadline import Deadline
from services.runtime.errors import BackendFailed, Draining, GristmillError, InvalidRequest

WINDOW_ITEMS = 1024
"""Read and not yet sent; a message of any size is read while fewer are."""
WINDOW_BYTES = 4 * 2**20
"""The same for the messages that these came in."""
MOST_RESULTS = 256
"""In one message."""
MAX_TIMEOUT_S = 3600.0
_log = structlog.get_logger()
Responses = AsyncGenerator[pb.ClassifyBidiResponse, None]


class Conversation:
    """One stream; `asked` makes what is asked of a message's items."""

    def __init__(self, traffic: Traffic, call: Call, asked: Any, default_timeout_s: float) -> None:
        self._traffic = traffic
        self._call = call
        self._asked = asked
        self._default_timeout_s = default_timeout_s
        self._model = model_pb2.ModelRef()
        self._options = options_pb2.ClassifyOptions()
        self._under_way: dict[str, int] = {}
        """Ids read and not yet sent, with the bytes that each came in."""
        self._bytes = 0
        self._sending = 0
        self._ready: list[pb.BidiResult] = []
        self._changed = asyncio.Event()
        """Something is ready, or the reader has ended."""
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._draining = traffic.draining

    async def __aenter__(self) -> Self:
        self._traffic.streams.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Whatever runs for a stream that has ended runs for nobody."""
        self._traffic.streams.discard(self)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answers(self, requests: AsyncIterator[pb.ClassifyBidiRequest]) -> Responses:
        """The results; ends when all that the caller sent is answered, or raises what ended it."""
        self._reader = reader = self._spawn(self._read(requests))
        reader.add_done_callback(lambda _: self._changed.set())
        if self._draining:
            reader.cancel()
        while True:
            self._changed.clear()
            while self._ready:
                results, self._ready = self._ready[:MOST_RESULTS], self._ready[MOST_RESULTS:]
                # A caller that has a result may use its id again; the window counts what is unsent.
                self._bytes -= sum([self._under_way.pop(result.id) for result in results])
                self._sending = len(results)
                yield pb.ClassifyBidiResponse(results=results)
                self._sending = 0
                self._room.set()
            if reader.done() and self._ended(reader):
                return
            await self._changed.wait()

    def drain(self) -> None:
        """Read no more; what has been read is still answered."""
        self._draining = True
        if self._reader is not None:
            self._reader.cancel()

    def _ended(self, reader: asyncio.Task[None]) -> bool:
        """Whether the stream ends now, and well; raises what ends it otherwise."""
        error = None if reader.cancelled() else reader.exception()
        # A message that cannot be taken ends the stream; what came before it is answered first.
        if self._under_way and (error is None or isinstance(error, GristmillError)):
            return False
        if error is not None:
            raise error
        if reader.cancelled():
            raise Draining("this server is shutting down; what has no result was not read")
        return True

    async def _read(self, requests: AsyncIterator[pb.ClassifyBidiRequest]) -> None:
        async for request in requests:
            self._accept(request)
            while not self._has_room():
                self._room.clear()
                await self._room.wait()

    def _has_room(self) -> bool:
        return len(self._under_way) + self._sending < WINDOW_ITEMS and self._bytes < WINDOW_BYTES

    def _accept(self, request: pb.ClassifyBidiRequest) -> None:
        if request.HasField("model"):
            self._model = request.model
        if request.HasField("options"):
            self._options = request.options
        ids = [item.id for item in request.items]
        if len(set(ids)) != len(ids) or not self._under_way.keys().isdisjoint(ids):
            raise InvalidRequest.field("items.id", "is used twice among the items under way")
        sizes = [item.ByteSize() for item in request.items]
        self._under_way.update(zip(ids, sizes, strict=True))
        self._bytes += sum(sizes)
        self._spawn(self._answer(request, ids, self._model, self._options))

    async def _answer(
        self,
        request: pb.ClassifyBidiRequest,
        ids: Sequence[str],
        model: model_pb2.ModelRef,
        options: options_pb2.ClassifyOptions,
    ) -> None:
        """Answer the items of one message; a refusal of it is the error of each."""
        told = [False] * len(ids)
        name, version = "", 0

        def tell(index: int, answer: Answer) -> None:
            told[index] = True
            result = pb.BidiResult(id=ids[index], model=name, version=version)
            to.result_into(result.result, answer, self._call.request_id)
            self._ready.append(result)
            self._changed.set()

        try:
            asked: Asked = self._asked(options, request.priority, self._call, self._until(request))
            items = [to.item_in(one.item) for one in request.items]
            with self._traffic.use(to.wanted(model, self._call.metadata)) as target:
                name, version = target.model, target.version
                await target.classify(items, asked, tell)
        except GristmillError as error:
            self._fail(told, tell, error)
        except Exception as error:
            _log.exception("items not answered", request_id=self._call.request_id)
            self._fail(told, tell, BackendFailed(str(error)))

    @staticmethod
    def _fail(told: Sequence[bool], tell: Any, error: GristmillError) -> None:
        for index, done in enumerate(told):
            if not done:
                tell(index, Answer(error=error))

    def _until(self, request: pb.ClassifyBidiRequest) -> Deadline:
        """When nobody waits any more for the items of a message; never after the stream ends."""
        given = request.timeout.ToTimedelta().total_seconds() if request.HasField("timeout") else 0
        deadline = Deadline.after(min(given or self._default_timeout_s, MAX_TIMEOUT_S))
        return min(deadline, self._call.deadline) if self._call.bounded else deadline

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
