"""A client that behaves badly, as a process of its own, until it is killed; says when it is at it.

`python -m tests.e2e.bad_client MANNER ADDRESS MODEL STREAMS CONNECTIONS ITEMS`. The manners:

- `idle`: opens bidi streams, a hundred at a time, and says nothing on them;
- `bidi`: reads one result of each bidi stream, and then only sends;
- `stream`: asks for server streams of so many results, reads one of each, and then no more.

The first line that it prints is "under way", once all its streams are.
"""

import asyncio
import sys
from typing import Any

import grpc
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from gristmill.classifier.v1 import item_pb2, options_pb2
from gristmill.registry.v1 import model_pb2

# So that a connection holds as little as may be of what is not read.
SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
AT_ONCE = 100
EVERYTHING = options_pb2.ClassifyOptions(top_k=10_000, return_probabilities=True)


def item(number: int) -> item_pb2.Item:
    """A vector of one number."""
    return item_pb2.Item(float_features=item_pb2.FloatFeatures(values=[number]))


async def idle(stub: Any, _model: Any, _items: int) -> Any:
    """A bidi stream on which nothing is said."""
    call = stub.ClassifyBidi()
    await call.wait_for_connection()
    # That waits for the connection only; this is answered after all that came before it.
    await stub.ListLoadedModels(pb.ListLoadedModelsRequest())
    return call


async def bidi(stub: Any, model: Any, items: int) -> Any:
    """A bidi stream whose results are not read after the first, for as long as it may be sent."""
    call = stub.ClassifyBidi()
    some = [pb.BidiItem(id=str(number), item=item(number)) for number in range(items)]
    await call.write(pb.ClassifyBidiRequest(items=some[:1], model=model, options=EVERYTHING))
    assert (await call.read()).results

    async def send() -> None:
        for at in range(1, items, 100):
            await call.write(pb.ClassifyBidiRequest(items=some[at : at + 100]))

    return call, asyncio.ensure_future(send())


async def stream(stub: Any, model: Any, items: int) -> Any:
    """A server stream whose results are not read after the first."""
    some = [item(number) for number in range(items)]
    request = pb.ClassifyStreamRequest(items=some, model=model, options=EVERYTHING)
    call = stub.ClassifyStream(request)
    assert (await call.read()).result.WhichOneof("outcome")
    return call


MANNERS = {"idle": idle, "bidi": bidi, "stream": stream}


async def main(
    manner: str, address: str, model: str, streams: int, connections: int, items: int
) -> None:
    """Open everything, say so, and wait to be killed."""
    options = [("grpc.use_local_subchannel_pool", 1), *SMALL_WINDOW]
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(connections)]
    stubs = [rpc.ClassifierServiceStub(channel) for channel in channels]
    begin, ref = MANNERS[manner], model_pb2.ModelRef(model=model)
    calls: list[Any] = []
    for at in range(0, streams, AT_ONCE):
        some = range(at, min(streams, at + AT_ONCE))
        calls += await asyncio.gather(*(begin(stubs[n % connections], ref, items) for n in some))
    print("under way", flush=True)
    await asyncio.Event().wait()
    del calls


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], *map(int, sys.argv[4:])))
