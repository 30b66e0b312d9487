"""Waiting for long work, and ending it, as flows; blocks on nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from gristmill_client import _work_messages as messages
from gristmill_client import errors
from gristmill_client._operation_state import OperationState
from gristmill_client._steps import Flow, Patience, Pause, call

R = TypeVar("R")
State = OperationState[Any]

PAGE_SIZE = 1000
# The longest that one call waits, and with somebody to tell of the progress.
_WAIT_S, _TELL_S = 20.0, 1.0
# What the call may take beyond that which it was asked to wait.
_SLACK_S = 10.0


def get(name: str) -> Flow[State]:
    request = operations_pb2.GetOperationRequest(name=full_name(name))
    return messages.operation((yield from _ask(lambda stub: stub.GetOperation, request)))


def listed(done: bool | None = None) -> Flow[list[State]]:
    filter_ = "" if done is None else f"done = {str(done).lower()}"
    request = operations_pb2.ListOperationsRequest(filter=filter_, page_size=PAGE_SIZE)
    found: list[State] = []
    while True:
        page = yield from _ask(lambda stub: stub.ListOperations, request)
        found += map(messages.operation, page.operations)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def cancel(name: str) -> Flow[None]:
    request = operations_pb2.CancelOperationRequest(name=full_name(name))
    yield from _ask(lambda stub: stub.CancelOperation, request)


def delete(name: str) -> Flow[None]:
    request = operations_pb2.DeleteOperationRequest(name=full_name(name))
    yield from _ask(lambda stub: stub.DeleteOperation, request)


def wait(
    state: State,
    timeout: float | None,
    on_progress: Callable[[State], None] | None,
    clock: Callable[[], float] = time.monotonic,
) -> Flow[State]:
    """The operation when it has ended, however often a call of this is cut."""
    ends = None if timeout is None else clock() + timeout
    patience = Patience()
    while not state.done:
        left = _TELL_S if on_progress else _WAIT_S
        if ends is not None:
            left = min(left, ends - clock())
        if left <= 0:
            raise errors.DeadlineExceeded(
                f"{state.name} was not done after {timeout:g} s and goes on: "
                f"`gristmill ops {state.name} --wait` waits for it"
            )
        try:
            state = yield from _wait_once(state.name, left)
        except errors.GristmillError as error:
            yield Pause(patience.pause(error))
            continue
        patience.progressed()
        if on_progress is not None:
            on_progress(state)
    return state


def result_of(state: OperationState[R]) -> R:
    """Raises the error that the work ended with."""
    if state.error is not None:
        raise state.error
    if state.result is None:
        raise errors.ServerError(f"{state.name} ended without a result that this client knows")
    return state.result


def full_name(name: str) -> str:
    """Takes "evaluate.1f2e" for "operations/evaluate.1f2e"."""
    return name if name.startswith("operations/") else f"operations/{name}"


def _wait_once(name: str, seconds: float) -> Flow[State]:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    request = operations_pb2.WaitOperationRequest(name=name, timeout=duration)
    answer = yield from _ask(lambda stub: stub.WaitOperation, request, seconds + _SLACK_S)
    return messages.operation(answer)


def _ask(method: Callable[[Any], Any], request: object, timeout: float | None = None) -> Flow[Any]:
    stub = cast("Callable[[Any], Any]", operations_pb2_grpc.OperationsStub)
    return (yield from call("registry", stub, method, request, timeout))
