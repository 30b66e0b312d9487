"""ClassifyBidi streams as tests hold them, the classifier behind them, and a device held by number.

Knows the wire and the classifier; each test says what must come of it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from gristmill.classifier.v1 import item_pb2, options_pb2, result_pb2
from gristmill.registry.v1 import model_pb2
from numpy.typing import NDArray

from services.classifier.servicer import ClassifierServicer
from tests.harness import SOON_S, Served, classifier, details, pb, serve, soon
from tests.unit.classifier.models import FIRST_TOKEN, World, message, number_in

Code = grpc.StatusCode


class Gates:
    """What every instance does before it computes: remember, and wait where a number is held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.bad: set[int] = set()
        self._held: dict[int, threading.Event] = {}
        self._entered: asyncio.Queue[list[int]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """One batch, on the instance's thread."""
        numbers = [int(row[0]) - FIRST_TOKEN for row in next(iter(inputs.values()))]
        self.batches.append(numbers)
        self._loop.call_soon_threadsafe(self._entered.put_nowait, numbers)
        for gate in [self._held[n] for n in numbers if n in self._held]:
            if not gate.wait(SOON_S):
                raise TimeoutError("the test never let the device go")
        if self.bad & set(numbers):
            raise ValueError("a bad item is in the batch")

    def hold(self, *numbers: int) -> None:
        """Hold every batch that one of these is in."""
        self._held.update({number: threading.Event() for number in numbers})

    def let_go(self, *numbers: int) -> None:
        """Let the batches of these go; all of them where none is named."""
        for number in numbers or list(self._held):
            self._held.pop(number).set()

    async def entered(self) -> list[int]:
        """The numbers of the next batch that the device has begun."""
        return await soon(self._entered.get())

    @property
    def computed(self) -> list[int]:
        """Every number that any batch held, in order."""
        return [number for batch in self.batches for number in batch]


@dataclass
class Talk:
    """One stream: what is sent, and the results as they come."""

    call: Any
    messages: list[list[pb.BidiResult]] = field(default_factory=list)
    """The results of each message that has come."""
    _left: list[pb.BidiResult] = field(default_factory=list)

    async def send(self, *items: pb.BidiItem, **fields: Any) -> None:
        """One message."""
        await soon(self.call.write(saying(*items, **fields)))

    async def more(self) -> bool:
        """Read one message of results; False at the end of the stream."""
        response = await soon(self.call.read())
        if response is grpc.aio.EOF:
            return False
        assert len(response.results) >= 1
        self.messages.append(list(response.results))
        self._left += response.results
        return True

    async def result(self) -> pb.BidiResult:
        """The next result."""
        while not self._left:
            assert await self.more(), "the stream ended instead of giving a result"
        return self._left.pop(0)

    async def results(self, count: int) -> dict[str, pb.BidiResult]:
        """So many results, by id; no id may come twice."""
        found = [await self.result() for _ in range(count)]
        assert len({one.id for one in found}) == count
        return {one.id: one for one in found}

    async def rest(self) -> dict[str, pb.BidiResult]:
        """Half-close, and all that is still answered; the stream must end well."""
        await soon(self.call.done_writing())
        while await self.more():
            pass
        assert await soon(self.call.code()) is Code.OK
        found, self._left = self._left, []
        assert len({one.id for one in found}) == len(found)
        return {one.id: one for one in found}

    async def failure(self) -> Any:
        """The error that ends the stream, whatever is answered before."""
        try:
            while await self.more():
                pass
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError("the stream ended well")


def saying(
    *items: pb.BidiItem,
    timeout: float | None = None,
    options: Any = None,
    probabilities: bool = True,
    **fields: Any,
) -> pb.ClassifyBidiRequest:
    """One message; probabilities come back unless told otherwise: they say whose answer it is."""
    if probabilities:
        options = options or options_pb2.ClassifyOptions()
        options.return_probabilities = True
    request = pb.ClassifyBidiRequest(items=items, options=options, **fields)
    if timeout is not None:
        request.timeout.FromTimedelta(timedelta(seconds=timeout))
    return request


def named(number: int, name: str = "", words: int = 1) -> pb.BidiItem:
    """An item whose answer is `number`, under that id unless told otherwise."""
    return pb.BidiItem(id=name or str(number), item=message(number, words))


def other(name: str, content: item_pb2.Item) -> pb.BidiItem:
    """Any other item."""
    return pb.BidiItem(id=name, item=content)


def ref(model: str = "", **which: Any) -> model_pb2.ModelRef:
    """A reference to a model."""
    return model_pb2.ModelRef(model=model, **which)


def info(result: result_pb2.ItemResult) -> error_details_pb2.ErrorInfo:
    """The one ErrorInfo of an item that failed."""
    assert result.WhichOneof("outcome") == "error", result
    (found,) = details(result.error, error_details_pb2.ErrorInfo)
    assert found.domain == "gristmill"
    return found


def numbers(results: Iterable[pb.BidiResult]) -> dict[str, int]:
    """The number that each answer is of, by id."""
    return {one.id: number_in(one.result) for one in results}


def errors(results: Iterable[pb.BidiResult]) -> dict[str, tuple[int, str]]:
    """The code and reason of each, by id; all must have failed."""
    return {one.id: (one.result.error.code, info(one.result).reason) for one in results}


@dataclass
class Rig:
    """A served classifier, its device and what stands behind it."""

    served: Served
    world: World
    device: Gates

    def talk(self, channel: Any = None, **how: Any) -> Talk:
        """A new stream, on the common connection unless one is given."""
        method = self.served.stub.ClassifyBidi
        if channel is not None:
            method = type(self.served)(self.served.server, channel).stub.ClassifyBidi
        return Talk(method(**how))

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for what no event tells of."""
        async with asyncio.timeout(SOON_S):
            while not true():
                await asyncio.sleep(0.001)

    async def submitted(self, count: int, model: str = "m") -> None:
        """Wait until the batcher of a model has been given so many items in all."""
        batcher = self.world.runner(model).batcher
        await self.until(lambda: batcher.counts.submitted >= count)
        assert batcher.counts.submitted == count

    def one_by_one(self, model: str = "m") -> None:
        """Let the model run batches of one from now on."""
        self.world.runner(model).batcher._scheduler.max_batch_size = 1


@asynccontextmanager
async def rig(
    transport: str,
    folder: Path,
    *models: str,
    default_timeout_s: float = 30.0,
    batching: dict[str, Any] | None = None,
    output: dict[str, Any] | None = None,
    linger: bool = False,
    **world_fields: Any,
) -> AsyncIterator[Rig]:
    """A classifier that serves these models on a device."""
    device = Gates()
    world = World(folder, device, **world_fields)
    more = {"batching": batching, "output": output}
    for model in models or ("m",):
        await world.add(model, **{key: value for key, value in more.items() if value})
    servicer = ClassifierServicer(world.serving, world.traffic, default_timeout_s=default_timeout_s)
    service = classifier(servicer, on_drain=[world.traffic.drain], on_close=[world.close])
    config = {"default_timeout_s": default_timeout_s}
    async with serve(service, transport, linger=linger, **config) as served:
        try:
            yield Rig(served, world, device)
        finally:
            device.let_go()
