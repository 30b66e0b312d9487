"""What this protocol says a model is: its metadata, and its configuration in Triton's form."""

import json
from collections.abc import Sequence

from services.classifier.classifier import Classifier
from services.classifier.oip import signature
from services.classifier.oip.parameters import LEAST_URGENT
from services.classifier.traffic import Target
from services.inference.backend import TensorSpec
from services.inference.manifest import Batching
from services.oip.contract import config_pb, pb

PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "pytorch": "pytorch_libtorch"}
"""By backend, as Triton names framework and format."""


def metadata(target: Target, versions: Sequence[int]) -> pb.ModelMetadataResponse:
    """The tensors of a version, and the versions that can be asked for."""
    offered = signature.of(target.runner)
    response = pb.ModelMetadataResponse(
        name=target.model, versions=map(str, versions), platform=_platform(target.runner)
    )
    for spec in offered.offered.values():
        response.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    for spec in offered.outputs.values():
        response.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response


def config(target: Target, versions: Sequence[int], default_priority: int) -> config_pb.ModelConfig:
    """How a version is run here."""
    runner, manifest = target.runner, target.runner.manifest
    offered = signature.of(runner)
    found = config_pb.ModelConfig(
        name=target.model,
        platform=_platform(runner),
        backend=runner.backend.name,
        max_batch_size=manifest.batching.max_batch_size,
        default_model_filename=manifest.files.get("model", ""),
        version_policy=config_pb.ModelVersionPolicy(
            specific=config_pb.ModelVersionPolicy.Specific(versions=versions)
        ),
        dynamic_batching=_batching(
            manifest.batching, runner.admission.limits.max_items, default_priority
        ),
        model_transaction_policy=config_pb.ModelTransactionPolicy(decoupled=False),
        response_cache=config_pb.ModelResponseCache(enable=runner.responses is not None),
    )
    for spec in offered.offered.values():
        found.input.add(name=spec.name, data_type=_type(spec), dims=spec.shape[1:])
    for spec in offered.outputs.values():
        found.output.add(name=spec.name, data_type=_type(spec), dims=spec.shape[1:])
    # How many there are was decided when the version was loaded; only the batcher knows it.
    _add_instances(found, runner.backend.device, runner.batcher.instances)
    for name, value in _more(target).items():
        found.parameters[name].string_value = value
    return found


def _batching(
    batching: Batching, max_queue_items: int, default_priority: int
) -> config_pb.ModelDynamicBatching:
    return config_pb.ModelDynamicBatching(
        preferred_batch_size=batching.preferred_batch_sizes,
        max_queue_delay_microseconds=round(batching.max_queue_delay_ms * 1000),
        priority_levels=LEAST_URGENT,
        default_priority_level=default_priority,
        # A request waits no longer than its caller does, and may say that it waits less.
        default_queue_policy=config_pb.ModelQueuePolicy(
            timeout_action=config_pb.ModelQueuePolicy.REJECT,
            allow_timeout_override=True,
            max_queue_size=max_queue_items,
        ),
    )


def _add_instances(found: config_pb.ModelConfig, device: str, count: int) -> None:
    kind, _, index = device.partition(":")
    on_cpu = kind == "cpu"
    group = found.instance_group.add(name=f"{found.name}_0", count=count)
    group.kind = (
        config_pb.ModelInstanceGroup.KIND_CPU if on_cpu else config_pb.ModelInstanceGroup.KIND_GPU
    )
    if not on_cpu:
        group.gpus.append(int(index or 0))


def _more(target: Target) -> dict[str, str]:
    """What Triton has no field for."""
    manifest = target.runner.manifest
    found = {
        "labels": json.dumps(manifest.output.labels, ensure_ascii=False),
        "multi_label": json.dumps(manifest.output.multi_label),
        "digest": target.loaded.entry.digest,
        "backend_version": target.runner.backend.version,
    }
    if manifest.batching.max_batch_tokens:
        found["max_batch_tokens"] = str(manifest.batching.max_batch_tokens)
    if manifest.input is not None:
        found["input_kind"] = manifest.input.kind
        if manifest.input.has_tokens:
            found["max_tokens"] = str(manifest.input.max_tokens)
    return found


def _platform(runner: Classifier) -> str:
    return PLATFORMS.get(runner.backend.name, runner.backend.name)


def _type(spec: TensorSpec) -> config_pb.DataType.ValueType:
    name = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return config_pb.DataType.Value(f"TYPE_{name}")
