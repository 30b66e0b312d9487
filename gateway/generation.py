"""A generation that is not streamed, gathered from one that is. Knows no dialect."""

from dataclasses import dataclass, field

import grpc
from gristmill.generator.v1 import generator_service_pb2 as pb

from gateway.opencall import OpenCall


@dataclass
class Generated:
    """What a stream with one choice has said, from its beginning to its end."""

    started: pb.Started = field(default_factory=pb.Started)
    text: str = ""
    finished: pb.Finished = field(default_factory=pb.Finished)


async def gathered(call: OpenCall) -> Generated:
    """All of a stream."""
    found, pieces = Generated(), []
    while (event := await call.read()) is not grpc.aio.EOF:
        if event.HasField("started"):
            found.started = event.started
        elif event.HasField("delta"):
            pieces.append(event.delta.text)
        elif event.HasField("finished"):
            found.finished = event.finished
    found.text = "".join(pieces)
    return found
