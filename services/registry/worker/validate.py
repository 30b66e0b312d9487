"""The whole check of a version: its files without a model, then the model once. Knows no wire."""

from pathlib import Path
from typing import Any

from services.inference.manifest import Manifest
from services.registry import checks
from services.registry.resources import RejectionRecord, SignatureRecord, TensorRecord
from services.registry.worker import datasets
from services.registry.worker.folders import Progress
from services.runtime.errors import FailedPrecondition, GristmillError


def validate(folder: Path, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """What is wrong with the version, its signature, and its manifest where that was inferred."""
    if job["task"] == "dataset":
        return _found(*datasets.check(folder, progress))
    progress(0.0, "checking files")
    policy = checks.Policy(allow_pickle=job["allow_pickle"])
    report = checks.check(folder, job["paths"], job["model"], job["task"], policy)
    rejections, signature = report.rejections, report.signature
    if not rejections and report.manifest is not None and job["model_work"]:
        progress(0.5, "running the model once")
        rejections, signature = _run(folder, report.manifest, signature)
    return _found(rejections, signature, report.manifest_text if not rejections else None)


def _run(
    folder: Path, manifest: Manifest, signature: SignatureRecord | None
) -> tuple[tuple[RejectionRecord, ...], SignatureRecord | None]:
    """What loading the model and one inference show."""
    from services.work.warm import warm  # imports model libraries

    try:
        seen = warm(folder, manifest)
    except FailedPrecondition:
        raise  # this worker lacks a library: that says nothing about the version
    except GristmillError as error:
        return (RejectionRecord(path="", rule="warm-up", message=error.message),), signature
    except Exception as error:
        said = f"the model cannot be run: {type(error).__name__}: {error}"[:2000]
        return (RejectionRecord(path="", rule="warm-up", message=said),), signature
    if not seen.inputs:  # a language model's engine tells of no tensors
        return (), signature
    tensors = {
        "inputs": tuple(_tensor(spec) for spec in seen.inputs),
        "outputs": tuple(_tensor(spec) for spec in seen.outputs),
    }
    return (), (signature or SignatureRecord()).model_copy(update=tensors)


def _tensor(spec: Any) -> TensorRecord:
    return TensorRecord(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _found(
    rejections: tuple[RejectionRecord, ...],
    signature: SignatureRecord | None,
    manifest: str | None = None,
) -> dict[str, Any]:
    return {
        "rejections": [rejection.model_dump() for rejection in rejections],
        "signature": signature.model_dump() if signature else None,
        "manifest": manifest,
    }
