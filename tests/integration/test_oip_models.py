"""Health, metadata, configuration, statistics and the repository, on both servers."""

import json
import time
from pathlib import Path
from typing import Any

import grpc

from services.inference.serving import Wanted
from services.oip.contract import config_pb, pb
from services.runtime.admission import Limits
from services.runtime.auth import token_hash
from services.runtime.catalog import VersionEntry
from services.runtime.health import Health
from tests.harness import failure, reason, soon
from tests.integration.inference_protocol import VERSION, numbers_in, rig, texts, told_of

Code = grpc.StatusCode


async def test_the_server_says_what_it_is(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        assert (await r.call("ServerLive")).live
        assert (await r.call("ServerReady")).ready
        told = await r.call("ServerMetadata")
        assert (told.name, told.version) == ("gristmill", VERSION)
        assert list(told.extensions) == [
            "classification",
            "model_repository",
            "model_repository(unload_dependents)",
            "schedule_policy",
            "model_configuration",
            "parameters",
            "statistics",
        ]


async def test_ready_is_the_health_of_the_process(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        health: Health = r.served.server.health
        health.set("", serving=False)
        assert not (await r.call("ServerReady")).ready
        assert (await r.call("ServerLive")).live
        health.set("", serving=True)
        assert (await r.call("ServerReady")).ready


async def test_a_drain_refuses_even_this(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        call = r.start("ModelInfer", texts(1))
        await r.device.entered()
        r.served.server.interceptor.draining = True
        for method in ("ServerReady", "ModelReady"):
            error = await r.fails(method)
            assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "DRAINING")
        r.device.open()
        assert numbers_in(await soon(call)) == [1]
        r.served.server.interceptor.draining = False


async def test_a_model_is_ready_or_not(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.world.add("broken", not_a_field="of any manifest")
        r.world.catalog.set_model("llm", "generation", archived=False)
        for name, version, ready in (
            ("m", "", True),
            ("m", "1", True),
            ("m", "2", False),
            ("nobody", "", False),
            ("broken", "", False),
            ("llm", "", False),
        ):
            answer = await r.call("ModelReady", name=name, version=version)
            assert answer.ready is ready, name
        error = await r.fails("ModelReady", name="m", version="first")
        assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_metadata(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.world.add("m", 2, "canary")
        told_of(r.world)
        told = await r.call("ModelMetadata", name="m")
        assert (told.name, list(told.versions), told.platform) == ("m", ["1", "2"], "fake")
        assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [
            ("text", "BYTES", [-1, 1])
        ]
        assert [(t.name, t.datatype, list(t.shape)) for t in told.outputs] == [
            ("probabilities", "FP64", [-1, 2])
        ]
        await r.world.serving.unload(Wanted("m", 2))
        assert list((await r.call("ModelMetadata", name="m")).versions) == ["1"]
        error = await r.fails("ModelMetadata", name="nobody")
        assert (error.code(), reason(error)) == (Code.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_configuration(transport: str, tmp_path: Path) -> None:
    batching = {
        "max_batch_size": 8,
        "max_batch_tokens": 100,
        "preferred_batch_sizes": [4, 8],
        "max_queue_delay_ms": 1.5,
    }
    async with rig(transport, tmp_path, limits=Limits(77, 10**6), instances=3) as r:
        await r.world.add("other", batching=batching)
        told_of(r.world)
        found = (await r.call("ModelConfig", name="other")).config
        assert (found.name, found.platform, found.backend) == ("other", "fake", "fake")
        assert found.max_batch_size == 8
        assert [(i.name, i.data_type, list(i.dims)) for i in found.input] == [
            ("text", config_pb.TYPE_STRING, [1])
        ]
        assert [(o.name, o.data_type, list(o.dims)) for o in found.output] == [
            ("probabilities", config_pb.TYPE_FP64, [2])
        ]
        batches = found.dynamic_batching
        assert list(batches.preferred_batch_size) == [4, 8]
        assert batches.max_queue_delay_microseconds == 1500
        assert (batches.priority_levels, batches.default_priority_level) == (9, 5)
        assert batches.default_queue_policy.max_queue_size == 77
        assert batches.default_queue_policy.allow_timeout_override
        (group,) = found.instance_group
        assert (group.count, group.kind) == (3, config_pb.ModelInstanceGroup.KIND_CPU)
        assert list(found.version_policy.specific.versions) == [1]
        assert not found.model_transaction_policy.decoupled
        assert not found.response_cache.enable
        more = {name: value.string_value for name, value in found.parameters.items()}
        assert json.loads(more.pop("labels")) == ["first", "second"]
        assert more == {
            "multi_label": "false",
            "digest": "other-1",
            "backend_version": "1",
            "input_kind": "text",
            "max_tokens": "64",
            "max_batch_tokens": "100",
        }


async def test_statistics_are_true_sums(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, "m", "n") as r:
        await r.world.add("m", 2, "canary")
        told_of(r.world)
        started = time.time()
        for request in (texts(1), texts(2, 3, 4)):
            await r.infer(request)
        r.device.bad = {4.0 + 9}
        await r.fails("ModelInfer", texts(9))
        took_ns = (time.time() - started) * 1e9
        r.world.runner().statistics.cache_hit.add(0.5, 3)
        (one, two) = (await r.call("ModelStatistics", name="m")).model_stats
        assert (one.name, one.version, two.version) == ("m", "1", "2")
        assert started * 1000 - 1 <= one.last_inference <= time.time() * 1000
        assert one.execution_count == 3
        sums = one.inference_stats
        assert (sums.success.count, sums.fail.count) == (2, 1)
        assert 0 < sums.success.ns < took_ns
        assert (sums.cache_hit.count, sums.cache_hit.ns) == (3, 500_000_000)
        assert sums.queue.count == sums.compute_infer.count + 3, "hits have been queued too"
        assert 0 < sums.compute_infer.ns <= 3 * took_ns
        sizes = {b.batch_size: b.compute_infer.count for b in one.batch_stats}
        assert sizes == {1: 2, 3: 1}
        assert one.inference_count == 4, "what the model failed on does not count"
        assert (two.execution_count, two.last_inference, len(two.batch_stats)) == (0, 0, 0)
        assert len(one.memory_usage) == 0


async def test_whose_statistics(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, "m", "n") as r:
        await r.world.add("sized", memory_bytes=123)

        async def of(**which: str) -> list[tuple[str, str]]:
            found = (await r.call("ModelStatistics", **which)).model_stats
            return [(one.name, one.version) for one in found]

        assert await of() == [("m", "1"), ("n", "1"), ("sized", "1")]
        assert await of(name="n", version="1") == [("n", "1")]
        (sized,) = (await r.call("ModelStatistics", name="sized")).model_stats
        assert [(u.type, u.id, u.byte_size) for u in sized.memory_usage] == [("CPU", 0, 123)]
        for which, code, why in (
            ({"name": "nobody"}, Code.NOT_FOUND, "MODEL_NOT_FOUND"),
            ({"name": "n", "version": "2"}, Code.NOT_FOUND, "MODEL_NOT_LOADED"),
            ({"version": "1"}, Code.INVALID_ARGUMENT, "INVALID_FIELD"),
            ({"name": "n", "version": "x"}, Code.INVALID_ARGUMENT, "INVALID_FIELD"),
        ):
            error = await r.fails("ModelStatistics", **which)
            assert (error.code(), reason(error)) == (code, why)


async def test_the_repository(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, "m", "n") as r:
        await r.world.add("broken", not_a_field="of any manifest")

        async def listed(**how: Any) -> list[tuple[str, str, str]]:
            found = (await r.call("RepositoryIndex", **how)).models
            assert all(one.reason for one in found if one.state == "UNAVAILABLE")
            return [(one.name, one.version, one.state) for one in found]

        every = [("broken", "1", "UNAVAILABLE"), ("m", "1", "READY"), ("n", "1", "READY")]
        assert await listed() == every
        assert await listed(ready=True) == every[1:]
        await r.call("RepositoryModelUnload", model_name="m")
        assert await listed(ready=True) == every[2:]
        (_, m, _) = (await r.call("RepositoryIndex")).models
        assert (m.state, m.reason) == ("UNAVAILABLE", "unloaded")
        error = await r.fails("ModelInfer", texts(1))
        assert (error.code(), reason(error)) == (Code.NOT_FOUND, "MODEL_NOT_LOADED")
        r.world.catalog.set_version(VersionEntry("m", 2, "m-2", ()), servable=True)
        r.world.catalog.set_alias("m", "live", 2)
        await r.world.serving.update(r.world.catalog)
        assert ("m", "2", "READY") not in await listed(), "an unload lasts"
        await r.call("RepositoryModelLoad", model_name="m")
        told_of(r.world)
        assert (await r.infer(texts(1))).model_version == "2"
        await r.call("RepositoryModelLoad", model_name="m")
        assert len(r.world.backends) == 3, "what is ready is not loaded again"


async def test_states_between(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        call = r.start("ModelInfer", texts(1))
        await r.device.entered()
        unload = r.start("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m"))

        def state() -> str:
            (loaded,) = r.world.serving.models()
            return loaded.state

        await r.until(lambda: state() == "draining")
        (entry,) = (await r.call("RepositoryIndex")).models
        assert entry.state == "UNLOADING"
        r.world.serving.models()[0].state = "loading"
        (entry,) = (await r.call("RepositoryIndex")).models
        assert entry.state == "LOADING"
        r.device.open()
        assert numbers_in(await soon(call)) == [1]
        await soon(unload)


async def test_what_the_repository_does_not_take(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        config = {"config": pb.ModelRepositoryParameter(string_param="{}")}
        file = {"file:1/model.onnx": pb.ModelRepositoryParameter(bytes_param=b"x")}
        flag = {"unload_dependents": pb.ModelRepositoryParameter(bool_param=True)}
        word = {"unload_dependents": pb.ModelRepositoryParameter(string_param="yes")}
        for method, fields, why in (
            ("RepositoryModelLoad", {"model_name": "m", "parameters": config}, "UNSUPPORTED_FIELD"),
            ("RepositoryModelLoad", {"model_name": "m", "parameters": file}, "UNSUPPORTED_FIELD"),
            ("RepositoryModelLoad", {}, "INVALID_FIELD"),
            (
                "RepositoryModelLoad",
                {"model_name": "m", "repository_name": "x"},
                "UNSUPPORTED_FIELD",
            ),
            ("RepositoryModelUnload", {}, "INVALID_FIELD"),
            ("RepositoryModelUnload", {"model_name": "m", "parameters": file}, "UNSUPPORTED_FIELD"),
            ("RepositoryModelUnload", {"model_name": "m", "parameters": word}, "INVALID_FIELD"),
            (
                "RepositoryModelUnload",
                {"model_name": "m", "repository_name": "x"},
                "UNSUPPORTED_FIELD",
            ),
            ("RepositoryIndex", {"repository_name": "x"}, "UNSUPPORTED_FIELD"),
        ):
            error = await r.fails(method, **fields)
            assert (error.code(), reason(error)) == (Code.INVALID_ARGUMENT, why), fields
        for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
            error = await r.fails(method, model_name="nobody")
            assert error.code() is Code.NOT_FOUND
        assert (await r.call("ModelReady", name="m")).ready
        await r.call("RepositoryModelUnload", model_name="m", parameters=flag)


async def test_loading_is_for_administrators(transport: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    lines = [
        f"- {{identity: {scope}, sha256: {token_hash(scope)}, scopes: [{scope}]}}"
        for scope in ("infer", "read", "admin")
    ]
    tokens.write_text("\n".join(["tokens:", *lines]))

    def holding(scope: str) -> dict[str, Any]:
        return {"metadata": (("authorization", f"Bearer {scope}"),)}

    async with rig(transport, tmp_path, config={"token_file": tokens}) as r:
        assert numbers_in(await r.infer(texts(1), **holding("infer"))) == [1]
        for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
            request = getattr(pb, f"{method}Request")(model_name="m")
            for scope in ("infer", "read"):
                error = await failure(r.start(method, request, **holding(scope)))
                assert (error.code(), reason(error)) == (Code.PERMISSION_DENIED, "SCOPE_MISSING")
            await soon(r.start(method, request, **holding("admin")))
        ready = pb.ModelReadyRequest(name="m")
        assert not (await soon(r.start("ModelReady", ready, **holding("read")))).ready
