"""Performs steps by awaiting: the channels of the async client, opened when first used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from gristmill.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from gristmill_client import _aio_transfers as transfers
from gristmill_client import _errors
from gristmill_client._config import Config, Service, channel_options, target
from gristmill_client._steps import Call, Download, Flow, Pause, Step, Upload, Work
from gristmill_client.errors import GristmillError

if TYPE_CHECKING:  # the generated code has this name for type checkers only
    from gristmill.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

T = TypeVar("T")


class AsyncSession:
    """One channel for each service, all of one event loop: that of the first call."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metadata = config.metadata()
        self._channels: dict[Service, grpc.aio.Channel] = {}
        self._stubs: dict[tuple[Service, object], Any] = {}
        self._closed = False

    def stub(self, service: Service, kind: Callable[[Any], Any]) -> Any:
        if self._closed:
            raise RuntimeError("the client is closed")
        if (service, kind) not in self._stubs:
            self._stubs[service, kind] = kind(self._channel(service))
        return self._stubs[service, kind]

    def error(self, service: Service, error: grpc.RpcError) -> GristmillError:
        return _errors.from_rpc(error, f"{service} at {self.config.address(service)}")

    async def run(self, flow: Flow[T]) -> T:
        """Performs the steps of a flow, handing it their results and errors."""
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._perform(step)
                except Exception as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as done:
            return cast(T, done.value)
        finally:
            flow.close()

    async def close(self) -> None:
        self._closed = True
        self._stubs.clear()
        while self._channels:
            await self._channels.popitem()[1].close()

    def _channel(self, service: Service) -> grpc.aio.Channel:
        if service not in self._channels:
            address = target(self.config.address(service))
            options = channel_options(self.config, service)
            credentials = self.config.credentials()
            self._channels[service] = (
                grpc.aio.insecure_channel(address, options)
                if credentials is None
                else grpc.aio.secure_channel(address, credentials, options)
            )
        return self._channels[service]

    async def _perform(self, step: Step) -> object:
        match step:
            case Work():
                return await asyncio.to_thread(step.run)
            case Pause():
                await asyncio.sleep(step.seconds)
                return None
        try:
            match step:
                case Call():
                    return await self._call(step)
                case Upload():
                    await transfers.upload(self._registry, self.metadata, step)
                case Download():
                    await transfers.download(self._registry, self.metadata, step)
        except grpc.RpcError as error:
            raise self.error(step.service, error) from error
        return None

    async def _call(self, step: Call) -> object:
        method = step.method(self.stub(step.service, step.stub))
        timeout = self.config.timeout_s if step.timeout is None else step.timeout
        return await method(step.request, timeout=timeout, metadata=self.metadata)

    @property
    def _registry(self) -> RegistryServiceAsyncStub:
        return cast("RegistryServiceAsyncStub", self.stub("registry", RegistryServiceStub))
