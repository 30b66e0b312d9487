"""A registry and a classifier as processes: no other service, small models, what the latter says.

Knows health, metrics and the registry's client; no test.
"""

import asyncio
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from gristmill_client import AsyncClient
from prometheus_client.parser import text_string_to_metric_families

from services.runtime.health import SERVING
from tests.e2e.processes import START_S, Service, free_ports, open_files, resident_bytes
from tests.harness import health_list

LOOK_S = 0.02
"""How often a process that says nothing is looked at."""


@dataclass
class Watched:
    """A process that serves the classifier's contract, and what it says and takes up."""

    service: Service

    @property
    def pid(self) -> int:
        """Its process."""
        return self.service.process.pid

    @property
    def resident_mib(self) -> float:
        """Its memory."""
        return resident_bytes(self.pid) / 2**20

    @property
    def files(self) -> int:
        """Its open files and sockets."""
        return open_files(self.pid)

    async def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample by its name and labels."""
        url = f"http://127.0.0.1:{self.service.admin_port}/metrics"
        text = await asyncio.to_thread(_read, url)
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over the labels that are not given; 0 where it was never touched."""
        found = await self.metrics()
        return sum(
            value
            for (one, has), value in found.items()
            if one == name and labels.items() <= dict(has).items()
        )

    def connect(self, *options: tuple[str, Any]) -> grpc.aio.Channel:
        """A connection of its own."""
        alone = (("grpc.use_local_subchannel_pool", 1), *options)
        return grpc.aio.insecure_channel(self.service.address, options=alone)

    async def serves(self, *names: str) -> None:
        """Wait until these names of its health are SERVING."""
        async with self.connect() as channel:
            await until(lambda: self._serves(channel, names), START_S)

    async def _serves(self, channel: grpc.aio.Channel, names: tuple[str, ...]) -> bool:
        assert self.service.running, self.service.log[-2000:]
        try:
            states = await health_list(channel)
        except grpc.aio.AioRpcError:
            return False
        return all(states.get(name) == SERVING for name in names)

    async def loaded(self, channel: grpc.aio.Channel, model: str) -> dict[int, Any]:
        """What it says of the versions of a model, by number."""
        stub: Any = rpc.ClassifierServiceStub(channel)
        answer = await stub.ListLoadedModels(pb.ListLoadedModelsRequest())
        return {one.version: one for one in answer.models if one.model == model}


@dataclass
class Pair(Watched):
    """The classifier, and the registry that it follows."""

    registry: Service

    def client(self) -> AsyncClient:
        """A client of the registry, for one event loop."""
        return AsyncClient(registry=self.registry.address, classifier=self.service.address)


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  # our own
        return str(answer.read().decode())


async def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait for what no event tells of; `true` may be awaitable."""
    async with asyncio.timeout(seconds):
        while True:
            found = true()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(LOOK_S)


@contextmanager
def pair(folder: Path, *arguments: str) -> Iterator[Pair]:
    """Both processes, without a model; `arguments` are the classifier's.

    The registry looks at files only, so that it starts at once and takes what a classifier of
    another make would run: what this one cannot is for it to find out.
    """
    ports = free_ports({"registry": 0, "classifier": 0, "admin": 0})
    data = f"--data-dir={folder / 'registry'}"
    registry = Service.start(
        "services.registry", ports["registry"], folder, data, "--worker=headers"
    )
    try:
        classifier = Service.start(
            "services.classifier",
            ports["classifier"],
            folder,
            *(f"--registry={registry.address}", f"--cache-dir={folder / 'cache'}", *arguments),
            admin_port=ports["admin"],
            log_every=0,
        )
        try:
            asyncio.run(Watched(registry).serves(""))
            found = Pair(classifier, registry)
            asyncio.run(found.serves(""))
            yield found
        finally:
            classifier.end()
    finally:
        registry.end()
