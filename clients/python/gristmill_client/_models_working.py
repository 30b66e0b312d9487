"""Long work, as the sync client shows it: the half of Models about operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gristmill_client import _operation_flows as operations
from gristmill_client import _work_flows as flows
from gristmill_client._session import Session
from gristmill_client.operations import Operation, bound
from gristmill_client.resources import Conversion, Profile, Source, Task, Version


class Working:
    """Each call that begins work answers at once; `wait` gives its result.

    A version is given by its number or by an alias; None is the newest that is READY.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def evaluate(
        self,
        name: str,
        version: int | str | None = None,
        *,
        data: str,
        data_version: int | str | None = None,
        metric_prefix: str = "",
    ) -> Operation[Version]:
        """Runs the labelled set `data` through a version and stores the metrics with it.

        `data` is a model of task dataset; each metric (accuracy, f1_macro, log_loss, ...) is named
        `metric_prefix` and its name. Raises NotFound, FailedPrecondition (not READY, no classifier,
        WORKER_MISSING); the operation InvalidRequest (the set does not fit). The result is the
        version with its metrics. RPC EvaluateModelVersion.
        """
        flow = flows.evaluate(name, version, data, data_version, metric_prefix)
        return bound(self._session.run(flow), self._session)

    def convert(
        self,
        name: str,
        version: int | str | None = None,
        *,
        to: Conversion,
        max_difference: float | None = None,
    ) -> Operation[Version]:
        """Makes a new version: "onnx" from PyTorch, or "onnx-int8-dynamic".

        It is refused where a probability differs by more than `max_difference` from the source's on
        real inputs (None: 1e-3 for onnx, 0.1 for int8). Raises as `evaluate` does. The result is
        the new version. RPC ConvertModelVersion.
        """
        flow = flows.convert(name, version, to, max_difference)
        return bound(self._session.run(flow), self._session)

    def profile(
        self,
        name: str,
        version: int | str | None = None,
        *,
        batch_sizes: Sequence[int] = (),
        lengths: Sequence[int] = (),
    ) -> Operation[Profile]:
        """Measures the latency of a version on the worker's host, over batch sizes and lengths in
        tokens; left out: the registry's own. Raises as `evaluate` does. RPC ProfileModelVersion.
        """
        flow = flows.profile(name, version, batch_sizes, lengths)
        return bound(self._session.run(flow), self._session)

    def profiles(self, name: str, version: int | str | None = None) -> list[Profile]:
        """The latency curves of a version, newest first. RPC GetModelVersionProfile."""
        return self._session.run(flows.profiles(name, version))

    def import_(
        self, name: str, source: str, path: str, revision: str = "", *, task: Task | None = None
    ) -> Operation[Version]:
        """Fetches a model from a configured source (see `sources`) into a new version.

        `path` is what to fetch within the source, `revision` such as a commit, which a hub needs in
        full. With a `task` the model is created if it is absent. Raises NotFound, InvalidRequest,
        FailedPrecondition (the model is of another task). The result is the version.
        RPCs GetModel, CreateModel, ImportModel.
        """
        flow = flows.import_model(name, source, path, revision, task)
        return bound(self._session.run(flow), self._session)

    def sources(self) -> list[Source]:
        """Where the registry may import from. RPC ListSources."""
        return self._session.run(flows.sources())

    def operation(self, name: str) -> Operation[Any]:
        """One piece of work, "operations/evaluate.1f2e" or "evaluate.1f2e". Raises NotFound.

        RPC google.longrunning.Operations/GetOperation.
        """
        return bound(self._session.run(operations.get(name)), self._session)

    def list_operations(self, done: bool | None = None) -> list[Operation[Any]]:
        """All work, newest first; `done` narrows it to what has, or has not, ended.

        RPC google.longrunning.Operations/ListOperations.
        """
        found = self._session.run(operations.listed(done))
        return [bound(state, self._session) for state in found]
