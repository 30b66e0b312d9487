"""The registry's long work with real models, in processes: one registry, and workers beside it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from google.longrunning import operations_pb2
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import ErrorInfo, PreconditionFailure
from gristmill.registry.v1 import alias_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from onnx import TensorProto, helper

from services.runtime import registry_client
from services.runtime.auth import token_hash
from tests.harness import SOON_S, details, failure, reason, soon, status_of
from tests.unit.registry.wire import ROOT, RegistryProcess, Wire, registry
from tests.unit.registry_worker.folders import built, declare, linear

READY, REJECTED = model_pb2.VERSION_STATE_READY, model_pb2.VERSION_STATE_REJECTED
DATASET = model_pb2.TASK_DATASET
FLOWERS = (
    ([5.1, 3.5, 1.4, 0.2], "setosa"),
    ([7.0, 3.2, 4.7, 1.4], "versicolor"),
    ([6.3, 3.3, 6.0, 2.5], "virginica"),
)
LABELLED = "".join(json.dumps({"features": f, "label": label}) + "\n" for f, label in FLOWERS * 10)
TEXTS = "".join(
    json.dumps({"text": f"the film of year {n} was {word} in each of its scenes", "label": label})
    + "\n"
    for n in range(300)
    for word, label in (("wonderful", "positive"), ("awful", "negative"))
)
"""More than a worker is through with in two renewals of its lease."""
WORK_S = 45
Made = Callable[[Path], Path]


def files(folder: Path) -> dict[str, bytes]:
    """What a version of this folder consists of."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".build.json"}


async def published(wire: Wire, model: str, data: dict[str, bytes], **fields: Any) -> Any:
    """A version of these files, checked; the model is made where it is not there."""
    task = fields.pop("task", model_pb2.TASK_CLASSIFICATION)
    with suppress(grpc.aio.AioRpcError):
        await wire.model(model, task)
    version = await wire.version(data, model, **fields)
    for path, content in data.items():
        await wire.upload(version.name, path, content)
    answer = await soon(
        wire.stub.FinalizeModelVersion(pb.FinalizeModelVersionRequest(name=version.name))
    )
    return await version_of(wire, answer.operation)


async def dataset(wire: Wire, text: str = LABELLED, model: str = "data") -> Any:
    """A version that holds a labelled set."""
    return await published(wire, model, {"data.jsonl": text.encode()}, task=DATASET)


async def ended(wire: Wire, operation: operations_pb2.Operation) -> Any:
    """An operation when it has ended."""
    async with asyncio.timeout(WORK_S + SOON_S):
        found = await wire.wait(operation.name, WORK_S)
    assert found.done, metadata(found)
    return found


async def version_of(wire: Wire, operation: operations_pb2.Operation) -> Any:
    """The version that an operation ends with."""
    found, version = await ended(wire, operation), model_pb2.ModelVersion()
    assert found.response.Unpack(version), found.error
    return version


def metadata(operation: operations_pb2.Operation) -> pb.OperationMetadata:
    """What is told of an operation."""
    found = pb.OperationMetadata()
    assert operation.metadata.Unpack(found)
    return found


async def evaluating(wire: Wire, version: str, data: str, **fields: Any) -> Any:
    """An evaluation, begun."""
    request = pb.EvaluateModelVersionRequest(name=version, dataset=data, **fields)
    return (await soon(wire.stub.EvaluateModelVersion(request))).operation


async def profiling(wire: Wire, version: str, sizes: list[int], lengths: list[int]) -> Any:
    """A profile, begun."""
    request = pb.ProfileModelVersionRequest(name=version, batch_sizes=sizes, lengths=lengths)
    return (await soon(wire.stub.ProfileModelVersion(request))).operation


async def converting(wire: Wire, version: str, difference: float) -> Any:
    """A conversion to int8, begun."""
    request = pb.ConvertModelVersionRequest(
        name=version, conversion=pb.CONVERSION_ONNX_INT8_DYNAMIC, max_difference=difference
    )
    return (await soon(wire.stub.ConvertModelVersion(request))).operation


async def under_way(wire: Wire, operation: operations_pb2.Operation) -> pb.OperationMetadata:
    """What is told of an operation once some of it is done."""
    ends = time.monotonic() + WORK_S
    while True:
        found = await soon(wire.operation(operation.name))
        assert not found.done, "it ended before it was caught"
        if metadata(found).progress > 0:
            return metadata(found)
        assert time.monotonic() < ends, "nothing was told of its progress"
        await asyncio.sleep(0.02)


async def failed(wire: Wire, operation: operations_pb2.Operation) -> tuple[int, str, str]:
    """The code, the reason and the message that an operation ends with."""
    found = await ended(wire, operation)
    assert found.WhichOneof("result") == "error"
    (info,) = details(found.error, ErrorInfo)
    assert info.domain == "gristmill"
    return found.error.code, info.reason, found.error.message


async def told_once(wire: Wire, version: str) -> None:
    """The metrics of a version came with one change."""
    request = pb.GetModelHistoryRequest(name=version.rpartition("/versions/")[0])
    changes = (await soon(wire.stub.GetModelHistory(request))).changes
    measured = [
        change.revision
        for change in changes
        if change.name == version and change.after.version.metrics != change.before.version.metrics
    ]
    assert len(measured) == 1


class WorkerProcess:
    """`python -m services.registry.worker` beside a registry."""

    def __init__(self, process: RegistryProcess, folder: Path, *flags: str) -> None:
        folder.mkdir()
        self.log = folder / "worker.log"
        bare = {k: v for k, v in os.environ.items() if not k.startswith("GRISTMILL_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services.registry.worker", "--port=0"),
                    *(f"--registry={process.target}", "--admin-port=-1"),
                    *(f"--scratch-dir={folder / 'scratch'}", *flags),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=bare,
            )

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait(SOON_S)

    def stop(self) -> int:
        """Ask it to drain; gives its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SOON_S)


@contextmanager
def worker(process: RegistryProcess, folder: Path, *flags: str) -> Iterator[WorkerProcess]:
    """A worker until the end of the block."""
    found = WorkerProcess(process, folder, *flags)
    try:
        yield found
    finally:
        found.kill()


@contextmanager
def running(folder: Path, *flags: str, lease_s: int = 2) -> Iterator[RegistryProcess]:
    """A registry whose workers renew their leases twice a second."""
    process = RegistryProcess(folder, f"--lease-s={lease_s}", *flags)
    try:
        process.start()
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the processes compile what they import once: they start many times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry with its worker inside; each test has models of its own."""
    with running(tmp_path_factory.mktemp("embedded")) as found:
        yield found


@pytest.fixture
async def wire(process: RegistryProcess) -> AsyncIterator[Wire]:
    """A client of it."""
    async with process.connected() as found:
        yield found


@pytest.mark.parametrize(
    ("model", "inputs", "labels"),
    [
        ("iris", {"features": [-1, 4]}, 3),
        (
            "sentiment",
            {name: [-1, -1] for name in ("input_ids", "attention_mask", "token_type_ids")},
            2,
        ),
    ],
)
async def test_a_model_is_run_once(
    wire: Wire, model: str, inputs: dict[str, list[int]], labels: int
) -> None:
    version = await published(wire, f"once-{model}", files(built(model)))
    assert version.state == READY, version.rejections
    signature = version.signature
    assert {tensor.name: list(tensor.shape) for tensor in signature.inputs} == inputs
    assert signature.outputs
    assert len(signature.labels) == labels
    assert [artifact.path for artifact in version.artifacts if artifact.path == "model.yaml"]


def two_labels(folder: Path) -> Path:
    """A model that gives another number of labels than it says."""
    return linear(folder, np.ones((4, 3)), output={"labels": ["a", "b"]})


def no_graph(folder: Path) -> Path:
    """A model that no library can load."""
    folder.mkdir()
    value = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    node = helper.make_node("NoSuchOperator", ["features"], ["logits"])
    graph = helper.make_graph([node], "broken", [value], [result])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    declare(folder)
    return folder


def not_finite(folder: Path) -> Path:
    """A model whose answers are no numbers."""
    return linear(folder, np.full((4, 3), np.nan))


def other_tokenizer(folder: Path) -> Path:
    """A model beside the tokenizer of a model with more words."""
    shutil.copytree(built("sentiment"), folder, ignore=shutil.ignore_patterns(".build.json"))
    said = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = said["model"]["vocab"]
    for word in vocabulary:
        if word.isalpha():
            vocabulary[word] += 100_000
    (folder / "tokenizer.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (two_labels, "names 2 labels, but the model gives 3"),
        (no_graph, "NoSuchOperator"),
        (not_finite, "not finite"),
        (other_tokenizer, "out of"),
    ],
)
async def test_a_model_that_does_not_run_is_rejected(
    wire: Wire, tmp_path: Path, made: Made, says: str
) -> None:
    version = await published(wire, f"broken-{made.__name__}", files(made(tmp_path / "made")))
    assert version.state == REJECTED
    (rejection,) = version.rejections
    assert rejection.rule == "warm-up"
    assert says in rejection.message
    assert str(tmp_path) not in rejection.message
    refused = await failure(profiling(wire, version.name, [1], [1]))
    assert reason(refused) == "WRONG_STATE"


async def test_a_folder_without_a_manifest_is_given_one(wire: Wire) -> None:
    config = {"id2label": {"0": "setosa", "1": "versicolor", "2": "virginica"}}
    made = {"model.onnx": files(built("iris"))["model.onnx"]}
    made["config.json"] = json.dumps(config).encode()
    version = await published(wire, "bare", made)
    assert version.state == READY, version.rejections
    assert sorted(a.path for a in version.artifacts) == ["config.json", "model.onnx", "model.yaml"]
    manifest = yaml.safe_load(await wire.download(version.name, "model.yaml"))
    assert manifest["output"]["labels"] == ["setosa", "versicolor", "virginica"]
    assert (manifest["name"], manifest["files"]) == ("bare", {"model": "model.onnx"})
    assert [list(tensor.shape) for tensor in version.signature.inputs] == [[-1, 4]]
    # What is inferred is served like any other: it can be evaluated.
    done = await version_of(wire, await evaluating(wire, version.name, (await dataset(wire)).name))
    assert done.metrics["errors"] == 0


async def test_a_labelled_set_is_checked_line_by_line(wire: Wire) -> None:
    good = await dataset(wire, LABELLED, "sets")
    assert good.state == READY
    assert list(good.signature.labels) == ["setosa", "versicolor", "virginica"]
    for number, (line, says) in enumerate(
        (("{", "line 31 is no JSON"), ('{"text": "x"}', 'line 31 needs a "label"'))
    ):
        bad = await dataset(wire, f"{LABELLED}{line}\n{LABELLED}", f"sets-{number}")
        assert bad.state == REJECTED
        (rejection,) = bad.rejections
        assert (rejection.path, rejection.rule) == ("data.jsonl", "data")
        assert says in rejection.message
    iris = await published(wire, "sets-iris", files(built("iris")))
    refused = await failure(evaluating(wire, iris.name, bad.name))
    assert (refused.code(), reason(refused)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "WRONG_STATE",
    )


async def test_an_evaluation_stores_what_it_measured(wire: Wire) -> None:
    iris, data = await published(wire, "measured", files(built("iris"))), await dataset(wire)
    operation = await evaluating(wire, iris.name, data.name, metric_prefix="heldout_")
    assert metadata(operation).kind == "evaluate"
    found = await ended(wire, operation)
    told = metadata(found)
    assert (told.subject, told.kind, told.progress) == (iris.name, "evaluate", 1.0)
    assert told.end_time.ToDatetime() >= told.create_time.ToDatetime()
    assert not told.cancel_requested
    version = await wire.get(iris.name)
    assert version == await version_of(wire, operation)
    metrics = version.metrics
    assert (metrics["heldout_examples"], metrics["heldout_errors"]) == (30, 0)
    assert metrics["heldout_accuracy"] == 1.0
    assert metrics["heldout_items_per_s"] > 0
    assert {"heldout_f1_macro", "heldout_log_loss", "heldout_ece"} <= metrics.keys()
    unknown = LABELLED + '{"features": [1, 2, 3, 4], "label": "rose"}\n'
    other = await dataset(wire, unknown, "roses")
    code, why, said = await failed(wire, await evaluating(wire, iris.name, other.name))
    assert (code, why) == (code_pb2.FAILED_PRECONDITION, "INVALID_FIELD")
    assert "line 31" in said
    assert await wire.get(iris.name) == version, "a failure changes nothing"


async def test_gates_hold_a_version_back_until_it_is_measured(wire: Wire) -> None:
    data = await dataset(wire)
    first = await published(wire, "gated", files(built("iris")))
    second = await published(wire, "gated", files(built("iris")), description="second")
    live = "models/gated/aliases/live"
    gates = [
        alias_pb2.Gate(
            metric="accuracy", comparison=alias_pb2.COMPARISON_AT_LEAST, holder_plus=-0.01
        ),
        alias_pb2.Gate(
            metric="p95_ms_batch_8", comparison=alias_pb2.COMPARISON_AT_MOST, value=1000.0
        ),
    ]

    async def unmet(version: int, **fields: Any) -> dict[str, str]:
        error = await failure(wire.alias(version, live, **fields))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason(error) == "GATE_UNMET"
        (found,) = details(status_of(error), PreconditionFailure)
        assert all(one.subject in error.details() for one in found.violations)
        return {one.subject: one.description for one in found.violations}

    assert await unmet(1, gates=gates) == {"p95_ms_batch_8": "version 1 has no such metric"}
    for version in (first, second):
        assert not version.metrics
        await version_of(wire, await evaluating(wire, version.name, data.name))
        if version is first:
            await ended(wire, await profiling(wire, version.name, [8], []))
            assert (await wire.alias(1, live, gates=gates)).version == 1
        assert (await unmet(2)).keys() == (
            {"accuracy", "p95_ms_batch_8"} if version is first else {"p95_ms_batch_8"}
        )
    operation = await profiling(wire, second.name, [8], [])
    await ended(wire, operation)
    metrics = (await wire.get(second.name)).metrics
    tight = alias_pb2.Gate(
        metric="p95_ms_batch_8", comparison=alias_pb2.COMPARISON_AT_MOST, value=1e-6
    )
    assert await unmet(2, gates=[tight]) == {
        "p95_ms_batch_8": f"{metrics['p95_ms_batch_8']:g} is not <= 1e-06"
    }
    assert (await wire.alias(2, live)).version == 2


async def test_a_profile_has_the_curve_and_the_host(wire: Wire) -> None:
    iris = await published(wire, "profiled", files(built("iris")))
    found = await ended(wire, await profiling(wire, iris.name, [8, 1, 8], [16, 64]))
    profile = pb.ModelVersionProfile()
    assert found.response.Unpack(profile), found.error
    request = pb.GetModelVersionProfileRequest(name=iris.name)
    answer = await soon(wire.stub.GetModelVersionProfile(request))
    assert list(answer.profiles) == [profile]
    assert profile.name == iris.name
    assert profile.fingerprint
    assert "\n" not in profile.fingerprint
    assert [(point.batch_size, point.length) for point in profile.points] == [(1, 1), (8, 1)]
    assert all(0 < point.p50_us <= point.p95_us for point in profile.points)
    metrics = (await wire.get(iris.name)).metrics
    assert metrics["p95_ms_batch_8"] == profile.points[1].p95_us / 1000

    again = await ended(wire, await profiling(wire, iris.name, [2], []))
    assert again.response.Unpack(profile)
    answer = await soon(wire.stub.GetModelVersionProfile(request))
    assert list(answer.profiles) == [profile], "one for each host"


async def converted(wire: Wire, model: str) -> None:
    """Convert the iris model: within a tolerance, and beyond it."""
    iris = await published(wire, model, files(built("iris")))
    operation = await converting(wire, iris.name, 1.0)
    made = await version_of(wire, operation)
    assert (made.name, made.state) == (f"models/{model}/versions/2", READY), made.rejections
    assert (made.lineage.parent_version, made.lineage.conversion) == (1, "onnx-int8-dynamic")
    assert made.lineage.facts["onnxruntime"]
    assert 0 < made.metrics["difference_max"] <= 1.0
    told = metadata(await wire.operation(operation.name))
    assert (told.kind, told.subject, told.progress) == ("convert", iris.name, 1.0)
    manifest = yaml.safe_load(await wire.download(made.name, "model.yaml"))
    assert manifest["lineage"]["conversion"] == "onnx-int8-dynamic"

    code, why, said = await failed(wire, await converting(wire, iris.name, 0.0))
    assert (code, why) == (code_pb2.FAILED_PRECONDITION, "WRONG_STATE")
    assert "more than the tolerance of 0" in said
    model_ = await soon(wire.stub.GetModel(pb.GetModelRequest(name=f"models/{model}")))
    assert model_.model.latest_version == 2, "what is too far off is no version"


async def test_a_conversion_makes_a_version_within_its_tolerance(wire: Wire) -> None:
    await converted(wire, "converted")


async def test_to_cancel_ends_work_in_hand(wire: Wire) -> None:
    model = await published(wire, "cancelled", files(built("sentiment")))
    operation = await profiling(wire, model.name, list(range(1, 17)), list(range(100, 116)))
    await under_way(wire, operation)
    await soon(wire.operations("CancelOperation", name=operation.name))
    assert metadata(await wire.operation(operation.name)).cancel_requested
    assert (await failed(wire, operation))[:2] == (code_pb2.CANCELLED, "CANCELLED")
    assert await wire.get(model.name) == model
    # The worker is free again.
    assert (await published(wire, "cancelled", files(built("iris")))).state == READY


async def test_a_registry_that_dies_takes_the_work_up_again(
    process: RegistryProcess, wire: Wire
) -> None:
    model = await published(wire, "resumed", files(built("sentiment")))
    data = await dataset(wire, TEXTS, "resumed-data")
    operation = await evaluating(wire, model.name, data.name)
    await under_way(wire, operation)
    process.kill()
    process.start()
    async with process.connected() as again:
        version = await version_of(again, operation)
        assert version.metrics["examples"] == 600
        assert await again.get(model.name) == version
        await told_once(again, model.name)


async def test_a_registry_without_a_worker_says_so(tmp_path: Path) -> None:
    async with registry(tmp_path / "r", "grpcio") as here:
        await here.model()
        version = await here.ready()
        for call in (
            evaluating(here, version.name, version.name),
            profiling(here, version.name, [1], [1]),
            converting(here, version.name, 1.0),
        ):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert reason(error) == "WORKER_MISSING"
            assert "worker" in error.details()


@asynccontextmanager
async def known(process: RegistryProcess, token: Path) -> AsyncIterator[Wire]:
    """A client that shows a token."""
    channel = registry_client.channel(process.target, None, token)
    try:
        yield Wire(channel)
    finally:
        await channel.close()


async def test_a_worker_elsewhere_does_all_of_it_with_a_token(tmp_path: Path) -> None:
    scopes = {"worker": ["read", "admin"], "reader": ["read"]}
    tokens = {name: f"token-of-the-{name}-0123456789" for name in scopes}
    for name, token in tokens.items():
        (tmp_path / name).write_text(token + "\n")
    entries = [
        {"identity": name, "sha256": token_hash(token), "scopes": scopes[name]}
        for name, token in tokens.items()
    ]
    (tmp_path / "tokens.yaml").write_text(yaml.safe_dump({"tokens": entries}))
    flags = ("--worker=external", f"--token-file={tmp_path / 'tokens.yaml'}")
    with running(tmp_path, *flags) as process:
        token = f"--registry-token-file={tmp_path / 'worker'}"
        with worker(process, tmp_path / "w", token) as there:
            async with known(process, tmp_path / "worker") as wire:
                await converted(wire, "far")
                data = await dataset(wire)
                name = "models/far/versions/2"
                version = await version_of(wire, await evaluating(wire, name, data.name))
                assert version.metrics["examples"] == 30
                found = await ended(wire, await profiling(wire, name, [1], []))
                assert found.WhichOneof("result") == "response"
                bare = {"model.onnx": files(built("iris"))["model.onnx"]}
                inferred = await published(wire, "far-bare", bare)
                assert inferred.state == READY, inferred.rejections
                assert await wire.download(inferred.name, "model.yaml")
            async with known(process, tmp_path / "reader") as wire:
                error = await failure(evaluating(wire, name, data.name))
                assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            assert there.stop() == 0
            assert list((tmp_path / "w" / "scratch").iterdir()) == []


async def test_what_a_lost_worker_had_in_hand_another_does(tmp_path: Path) -> None:
    with running(tmp_path, "--worker=external") as process:
        async with process.connected() as wire:
            with worker(process, tmp_path / "first") as first:
                model = await published(wire, "lost", files(built("sentiment")))
                data = await dataset(wire, TEXTS)
                operation = await evaluating(wire, model.name, data.name)
                await under_way(wire, operation)
                first.kill()
            with worker(process, tmp_path / "second"):
                version = await version_of(wire, operation)
                assert version.metrics["examples"] == 600
                assert version.state == READY
                await told_once(wire, model.name)


async def test_a_worker_that_is_asked_to_end_gives_its_work_back(tmp_path: Path) -> None:
    with running(tmp_path, "--worker=external", lease_s=600) as process:
        async with process.connected() as wire:
            with worker(process, tmp_path / "first") as first:
                iris = await published(wire, "handed", files(built("iris")))
                operation = await profiling(wire, iris.name, list(range(1, 5)), [])
                until = time.monotonic() + SOON_S
                while not list((tmp_path / "first" / "scratch").glob("job-*/child.log")):
                    assert time.monotonic() < until, "it did not begin"
                    await asyncio.sleep(0.02)
                assert first.stop() == 0
            with worker(process, tmp_path / "second"):
                await ended(wire, operation)
