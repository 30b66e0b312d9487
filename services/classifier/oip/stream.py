"""One ModelStreamInfer stream: requests in, their responses out in the same order, in a window.

The requests are answered side by side, each by a task of its own. Responses keep the order of the
requests, as Triton keeps it for models that give one response each: clients that set no id rely on
it. What has been read and not been sent is bounded: beyond that the caller is not read from.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Self

import structlog

from services.classifier.oip.inference import Inference
from services.classifier.oip.parameters import FINAL
from services.classifier.traffic import Traffic
from services.oip.contract import pb
from services.runtime import status
from services.runtime.call import Call
from services.runtime.deadline import Deadline
from services.runtime.errors import BackendFailed, Draining, GristmillError

WINDOW_REQUESTS = 256
WINDOW_BYTES = 64 * 2**20
"""Read and not yet sent; a request of any size is read while less is."""
STRICT = "triton_grpc_error"
"""Metadata of a caller that wants the first failure to end the stream, with its status."""
_log = structlog.get_logger()
Responses = AsyncGenerator[pb.ModelStreamInferResponse, None]


class Stream:
    """The requests of one stream that are under way, the oldest first."""

    def __init__(
        self, traffic: Traffic, inference: Inference, call: Call, default_timeout_s: float
    ) -> None:
        self._traffic = traffic
        self._inference = inference
        self._call = call
        self._default_timeout_s = default_timeout_s
        self._strict = call.metadata.get(STRICT) == "true"
        self._under_way: deque[asyncio.Task[pb.ModelStreamInferResponse]] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        """Something is under way, or the reader has ended."""
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._draining = traffic.draining

    async def __aenter__(self) -> Self:
        self._traffic.streams.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Whatever runs for a stream that has ended runs for nobody."""
        self._traffic.streams.discard(self)
        left = [*self._under_way, *([self._reader] if self._reader else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def responses(self, requests: AsyncIterator[pb.ModelInferRequest]) -> Responses:
        """A response for each request; ends when all are answered, or raises what ended it."""
        self._reader = reader = asyncio.ensure_future(self._read(requests))
        reader.add_done_callback(lambda _: self._changed.set())
        if self._draining:
            reader.cancel()
        while True:
            while self._under_way:
                yield await self._under_way[0]
                self._under_way.popleft()
                self._bytes -= self._sizes.popleft()
                self._room.set()
            if reader.done():
                break
            self._changed.clear()
            await self._changed.wait()
        if not reader.cancelled() and (error := reader.exception()):
            raise error
        if self._draining:
            raise Draining("this server is shutting down; what has no response was not read")

    def drain(self) -> None:
        """Read no more; what has been read is still answered."""
        self._draining = True
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        async for request in requests:
            self._under_way.append(asyncio.ensure_future(self._answered(request)))
            self._sizes.append(request.ByteSize())
            self._bytes += self._sizes[-1]
            self._changed.set()
            while len(self._under_way) >= WINDOW_REQUESTS or self._bytes >= WINDOW_BYTES:
                self._room.clear()
                await self._room.wait()

    async def _answered(self, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        try:
            answer = await self._inference.answer(request, self._call, self._until())
        except GristmillError as error:
            return self._failed(request, error)
        except Exception as error:
            _log.exception("request not answered", request_id=self._call.request_id)
            return self._failed(request, BackendFailed(str(error)))
        answer.parameters[FINAL].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=answer)

    def _failed(
        self, request: pb.ModelInferRequest, error: GristmillError
    ) -> pb.ModelStreamInferResponse:
        """What tells of a failure, unless it is to end the stream."""
        if self._strict:
            raise error
        said = status.to_status(error, self._call.request_id).message
        response = pb.ModelStreamInferResponse(error_message=said)
        answer = response.infer_response
        answer.id = request.id
        answer.model_name, answer.model_version = request.model_name, request.model_version
        answer.parameters[FINAL].bool_param = True
        answer.parameters["reason"].string_param = error.reason_given
        return response

    def _until(self) -> Deadline:
        """When nobody waits any more for a request; never after the stream ends."""
        deadline = Deadline.after(self._default_timeout_s)
        return min(deadline, self._call.deadline) if self._call.bounded else deadline
