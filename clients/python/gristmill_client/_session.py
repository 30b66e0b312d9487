"""Performs steps by blocking: the channels of the sync client, opened when first used."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import grpc
from gristmill.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from gristmill_client import _errors, _transfers
from gristmill_client._config import Config, Service, channel_options, target
from gristmill_client._steps import Call, Download, Flow, Pause, Step, Upload, Work
from gristmill_client.errors import GristmillError

Stub = TypeVar("Stub")
T = TypeVar("T")


class Session:
    """One channel for each service. Safe to share between threads."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metadata = config.metadata()
        self._lock = threading.Lock()
        self._channels: dict[Service, grpc.Channel] = {}
        self._stubs: dict[tuple[Service, object], Any] = {}
        self._closed = False

    def stub(self, service: Service, kind: Callable[[grpc.Channel], Stub]) -> Stub:
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if (service, kind) not in self._stubs:
                self._stubs[service, kind] = kind(self._channel(service))
            return cast(Stub, self._stubs[service, kind])

    def error(self, service: Service, error: grpc.RpcError) -> GristmillError:
        return _errors.from_rpc(error, f"{service} at {self.config.address(service)}")

    def run(self, flow: Flow[T]) -> T:
        """Performs the steps of a flow, handing it their results and errors."""
        try:
            step = next(flow)
            while True:
                try:
                    result = self._perform(step)
                except Exception as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as done:
            return cast(T, done.value)
        finally:
            flow.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._stubs.clear()
            while self._channels:
                self._channels.popitem()[1].close()

    def _channel(self, service: Service) -> grpc.Channel:
        if service not in self._channels:
            address = target(self.config.address(service))
            options = channel_options(self.config, service)
            credentials = self.config.credentials()
            self._channels[service] = (
                grpc.insecure_channel(address, options)
                if credentials is None
                else grpc.secure_channel(address, credentials, options)
            )
        return self._channels[service]

    def _perform(self, step: Step) -> object:
        match step:
            case Work():
                return step.run()
            case Pause():
                time.sleep(step.seconds)
                return None
        try:
            match step:
                case Call():
                    return self._call(step)
                case Upload():
                    _transfers.upload(self._registry, self.metadata, step)
                case Download():
                    _transfers.download(self._registry, self.metadata, step)
        except grpc.RpcError as error:
            raise self.error(step.service, error) from error
        return None

    def _call(self, step: Call) -> object:
        method = step.method(self.stub(step.service, step.stub))
        timeout = self.config.timeout_s if step.timeout is None else step.timeout
        return method(step.request, timeout=timeout, metadata=self.metadata)

    @property
    def _registry(self) -> RegistryServiceStub:
        return self.stub("registry", RegistryServiceStub)
