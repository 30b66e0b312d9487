"""Answers every RPC of the Open Inference Protocol with UNIMPLEMENTED, until it is built."""

from collections.abc import AsyncIterator
from typing import Any

from services.classifier.oip.contract import SERVICE


class NotBuilt:
    """Has a method for each RPC; each says that it is not built."""

    def __getattr__(self, name: str) -> Any:
        if name not in SERVICE.methods_by_name:
            raise AttributeError(name)
        return _stream if SERVICE.methods_by_name[name].server_streaming else _unary


async def _unary(request: Any, context: Any) -> Any:
    raise NotImplementedError


async def _stream(requests: Any, context: Any) -> AsyncIterator[Any]:
    raise NotImplementedError
    yield  # makes this an asynchronous generator, as the handler must be
