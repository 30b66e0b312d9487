"""Long work is begun, waited for, told of and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill_client import (
    Cancelled,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    OperationState,
    ServerError,
    Source,
    Unavailable,
)
from gristmill_client import _operation_flows as flows
from gristmill_client._steps import Call, Pause

from tests.unit.client.conftest import Twin
from tests.unit.client.fake_registry import FakeRegistry, Faults
from tests.unit.client.fakes import SOON_S, serving
from tests.unit.registry.wire import RegistryProcess

Make = Callable[..., Twin]

CACHE = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill")
LABELLED = [([5.1, 3.5, 1.4, 0.2], "setosa"), ([6.3, 3.3, 6.0, 2.5], "virginica")]


def state(**changed: Any) -> OperationState[Any]:
    """An operation that goes on."""
    plain: dict[str, Any] = {
        "name": "operations/evaluate.1",
        "kind": "evaluate",
        "subject": "models/m/versions/1",
        "progress": 0.5,
        "message": "",
        "done": False,
        "error": None,
        "result": None,
        "create_time": None,
        "end_time": None,
        "cancel_requested": False,
    }
    return OperationState(**{**plain, **changed})


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry whose jobs wait for workers that do not come; its imports it does itself."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "little").mkdir()
    (folder / "little" / "data.jsonl").write_text('{"text": "a", "label": "b"}\n')
    sources = json.dumps({"shelf": {"kind": "folder", "path": str(folder)}})
    made = RegistryProcess(folder, "--worker=external", f"--sources={sources}")
    made.start()
    yield made
    made.kill()


def test_work_can_be_listed_and_ended(
    twin: Make, shelf: RegistryProcess, bare: Path, named: str
) -> None:
    client = twin(registry=shelf.target)
    models = client.client.models
    with pytest.raises(DeadlineExceeded):
        client.run(models.push(bare, name=named, timeout=0.1))
    with pytest.raises(DeadlineExceeded):  # the same version: its check goes on
        client.run(models.push(bare, name=named, timeout=0.1))
    assert [version.version for version in client.run(models.versions(named))] == [1]
    running = client.run(models.list_operations(done=False))
    (work,) = [each for each in running if each.subject == f"models/{named}/versions/1"]
    assert (work.kind, work.done, work.result) == ("finalize", False, None)
    client.run(work.cancel())
    with pytest.raises(Cancelled):
        client.run(work.wait(SOON_S))
    ended = client.run(work.refresh())
    assert ended.done
    assert isinstance(ended.error, Cancelled)
    assert work.name not in {o.name for o in client.run(models.list_operations(done=False))}
    client.run(ended.delete())


def test_an_import_knows_its_source(twin: Make, shelf: RegistryProcess, named: str) -> None:
    client = twin(registry=shelf.target)
    models = client.client.models
    assert client.run(models.sources()) == [Source("shelf", "folder")]
    with pytest.raises(NotFound, match="name a task"):
        client.run(models.import_(named, "shelf", "little"))
    with pytest.raises(NotFound, match="only: shelf"):
        client.run(models.import_(named, "hub", "little", task="dataset"))
    work = client.run(models.import_(named, "shelf", "little", task="dataset"))
    assert (work.kind, work.subject) == ("import", f"models/{named}")
    with pytest.raises(FailedPrecondition, match="not for generation"):
        client.run(models.import_(named, "shelf", "little", task="generation"))
    client.run(work.cancel())


def test_a_registry_without_workers_says_so(
    twin: Make, process: RegistryProcess, bare: Path, named: str
) -> None:
    client = twin(registry=process.target)
    models = client.client.models
    client.run(models.push(bare, name=named))
    for begin in (
        lambda: models.evaluate(named, 1, data=named, data_version=1),
        lambda: models.convert(named, to="onnx-int8-dynamic", max_difference=0.5),
        lambda: models.profile(named, batch_sizes=[1, 2]),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            client.run(begin())
        assert caught.value.reason == "WORKER_MISSING"
    assert client.run(models.profiles(named)) == []
    with pytest.raises(ValueError, match="`to` is one of"):
        client.run(models.convert(named, to="gguf"))
    with pytest.raises(NotFound):
        client.run(models.operation("evaluate.0000000000000000"))


def test_progress_is_told(twin: Make) -> None:
    registry = FakeRegistry(faults=Faults(finalize_polls=3))
    registry.add_version("m", {})
    heard: list[OperationState[Any]] = []
    with serving(registry.register) as address:
        client = twin(registry=address)
        work = client.run(client.client.models.operation("operations/models/m/versions/1"))
        version = client.run(work.wait(SOON_S, heard.append))
    assert version.model == "m"
    assert [each.done for each in heard] == [False, False, True]  # the first was asked for


def test_waiting_survives_a_cut() -> None:
    flow = flows.wait(state(), None, None)
    assert isinstance(next(flow), Call)
    for _ in range(8):
        assert isinstance(flow.throw(Unavailable("restarting")), Pause)
        assert isinstance(next(flow), Call)
    with pytest.raises(Unavailable):
        flow.throw(Unavailable("restarting"))


def test_waiting_heeds_its_time() -> None:
    now = iter([0.0, 1.0, 6.0])
    flow = flows.wait(state(), 5.0, None, lambda: next(now))
    step = next(flow)
    assert isinstance(step, Call)
    assert step.request.timeout.ToSeconds() == 4
    assert isinstance(flow.throw(Unavailable("restarting")), Pause)
    with pytest.raises(DeadlineExceeded, match="not done after 5 s and goes on"):
        next(flow)


def test_work_that_ended_is_not_asked_for_again() -> None:
    with pytest.raises(StopIteration) as ended:
        next(flows.wait(state(done=True), 0.0, None))
    with pytest.raises(ServerError, match="without a result"):
        flows.result_of(ended.value.value)


def test_an_interrupt_leaves_the_work_alone(shelf: RegistryProcess, bare: Path) -> None:
    with Client(registry=shelf.target) as client:
        with pytest.raises(DeadlineExceeded):
            client.models.push(bare, name="interrupted", timeout=0.1)
        name = "finalize.interrupted.1"
        code = "from gristmill_client.cli import main; print(1, flush=True); main()"
        command = [sys.executable, "-c", code, "--registry", shelf.target, "ops", name, "--wait"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(1.5)  # until it waits
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SOON_S)
        assert process.returncode == 130, err
        assert b"Traceback" not in err
        work = client.models.operation(name)
        assert not work.cancel_requested
        work.cancel()


def test_a_wrong_address_is_told_at_once(twin: Make) -> None:
    registry = FakeRegistry()
    with serving(registry.register) as address:
        client = twin(classifier=address, registry=address)
        with pytest.raises(Exception, match=grpc.StatusCode.UNIMPLEMENTED.name):
            client.run(client.client.models.list_operations())


def test_an_evaluation_runs_for_real(tmp_path: Path) -> None:
    """The whole way: push, push the labelled set, evaluate, hold a gate against what came of it."""
    data = tmp_path / "flowers"
    data.mkdir()
    lines = [json.dumps({"features": x, "label": y}) for x, y in LABELLED]
    (data / "data.jsonl").write_text("\n".join(lines))
    registry = RegistryProcess(tmp_path)
    registry.start()
    try:
        with Client(registry=registry.target) as client:
            client.models.push(CACHE / "models" / "iris")
            client.models.push(data)
            heard: list[OperationState[Any]] = []
            work = client.models.evaluate("iris", data="flowers", metric_prefix="two_")
            version = work.wait(100, heard.append)
            assert version.metrics["two_accuracy"] == 1.0
            assert version.metrics["two_examples"] == 2
            assert heard[-1].progress == 1.0
            assert client.models.version("iris", 1).metrics == version.metrics
            client.models.promote("iris", 1, gates=["two_accuracy>=0.9"])
    finally:
        registry.kill()
