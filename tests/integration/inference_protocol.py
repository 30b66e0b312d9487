"""A classifier served by the Open Inference Protocol, its device, and requests for it."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.classifier.oip.servicer import InferenceServicer
from services.inference.backend import TensorSpec
from services.oip.contract import POOL, SERVICE, method_handlers, pb
from services.runtime.health import SERVING, Health
from tests.harness import SOON_S, Served, classifier, failure, serve, soon
from tests.unit.classifier.models import FIRST_TOKEN, SCALE, World, text_of
from tests.unit.inference.fakes import Device

OUTPUTS = (TensorSpec("probabilities", "FP64", (-1, 2)),)
VERSION = "1.2.3"


@dataclass
class Rig:
    """A served classifier, its device and what stands behind it."""

    served: Served
    world: World
    device: Device

    def start(self, method: str, request: Any, **how: Any) -> Any:
        """A unary call that is on its way."""
        return self._callable("unary_unary", method)(request, **how)

    async def call(self, method: str, **fields: Any) -> Any:
        """The answer of a unary call."""
        return await soon(self.start(method, self._message(method)(**fields)))

    async def infer(self, request: pb.ModelInferRequest, **how: Any) -> pb.ModelInferResponse:
        """The answer of ModelInfer."""
        response: pb.ModelInferResponse = await soon(self.start("ModelInfer", request, **how))
        return response

    async def fails(self, method: str, request: Any = None, **fields: Any) -> Any:
        """The error of a unary call."""
        return await failure(self.start(method, request or self._message(method)(**fields)))

    def stream(self, requests: Any = None, **how: Any) -> Any:
        """A ModelStreamInfer call."""
        return self._callable("stream_stream", "ModelStreamInfer")(requests, **how)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for what no event tells of."""
        async with asyncio.timeout(SOON_S):
            while not true():
                await asyncio.sleep(0.001)

    def _callable(self, kind: str, method: str) -> Any:
        descriptor = SERVICE.methods_by_name[method]
        return getattr(self.served.channel, kind)(
            f"/{SERVICE.full_name}/{method}",
            request_serializer=getattr(pb, descriptor.input_type.name).SerializeToString,
            response_deserializer=getattr(pb, descriptor.output_type.name).FromString,
        )

    @staticmethod
    def _message(method: str) -> Any:
        return getattr(pb, SERVICE.methods_by_name[method].input_type.name)


@asynccontextmanager
async def rig(
    transport: str,
    folder: Path,
    *models: str,
    config: dict[str, Any] | None = None,
    servicer: dict[str, Any] | None = None,
    **world_fields: Any,
) -> AsyncIterator[Rig]:
    """A classifier that serves these text models on a device."""
    device, health = Device(), Health()
    world = World(folder, device, **world_fields)
    for model in models or ("m",):
        await world.add(model)
    inference = InferenceServicer(
        world.serving,
        world.traffic,
        lambda: health.status("") == SERVING,
        VERSION,
        **(servicer or {}),
    )
    service = classifier(
        world.servicer,
        handlers={SERVICE.full_name: method_handlers(inference)},
        pools=(POOL,),
        on_drain=[world.traffic.drain],
        on_close=[world.close],
    )
    async with serve(service, transport, health=health, **(config or {})) as served:
        told_of(world)
        try:
            yield Rig(served, world, device)
        finally:
            device.open()


def told_of(world: World) -> None:
    """Let the models say of their outputs what they give."""
    for backend in world.backends:
        backend.outputs = OUTPUTS


def raw_bytes(values: Iterable[bytes]) -> bytes:
    """A tensor of BYTES as raw contents."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def texts(*numbers: int, words: int = 1, model: str = "m", **fields: Any) -> pb.ModelInferRequest:
    """A request of texts whose answers are these numbers."""
    values = [text_of(number, words).encode() for number in numbers]
    request = pb.ModelInferRequest(
        model_name=model, raw_input_contents=[raw_bytes(values)], **fields
    )
    request.inputs.add(name="text", datatype="BYTES", shape=[len(values), 1])
    return request


def with_parameters(request: pb.ModelInferRequest, **given: Any) -> pb.ModelInferRequest:
    """The request with parameters: flags, whole numbers, words."""
    for name, value in given.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


def numbers_in(response: pb.ModelInferResponse) -> list[int]:
    """The numbers that an answer is of."""
    (output,) = response.outputs
    (raw,) = response.raw_output_contents
    assert (output.name, output.datatype) == ("probabilities", "FP64")
    assert not output.HasField("contents")
    array = np.frombuffer(raw, "<f8").reshape(output.shape)
    assert array.shape[1] == 2
    return [round(value * SCALE) - FIRST_TOKEN for value in array[:, 0].tolist()]
