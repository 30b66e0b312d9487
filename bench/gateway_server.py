"""What `bench.gateway` holds the gateway against. `python -m bench.gateway_server noop|hand TARGET`

`noop` is a bare FastAPI route that answers at once; `hand` the route that one would write by hand:
the body into a message, the call, the message into JSON, and nothing else. Prints its port.
"""

import socket
import sys
from typing import Any

import grpc
import uvicorn
import uvloop
from fastapi import FastAPI
from google.protobuf import json_format
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc

PATH = "/classifier/v1/classify"
ANSWER = {
    "results": [{"classification": {"labels": [{"label": "setosa", "score": 0.99, "index": 0}]}}],
    "model": "iris",
    "version": 1,
}


def noop() -> FastAPI:
    """Answers at once."""
    app = FastAPI()

    @app.post(PATH)
    async def classify(body: dict[str, Any]) -> dict[str, Any]:
        return ANSWER

    return app


def hand(target: str) -> FastAPI:
    """Calls the classifier."""
    app = FastAPI()
    stub: Any = rpc.ClassifierServiceStub(grpc.aio.insecure_channel(target))

    @app.post(PATH)
    async def classify(body: dict[str, Any]) -> dict[str, Any]:
        request = json_format.ParseDict(body, pb.ClassifyRequest())
        return json_format.MessageToDict(await stub.Classify(request, timeout=30))

    return app


async def serve(kind: str, target: str) -> None:
    """Listen on a free port until a signal."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    app = noop() if kind == "noop" else hand(target)
    config = uvicorn.Config(app, http="httptools", log_level="error", access_log=False)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
